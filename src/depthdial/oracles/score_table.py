"""A table of rows (one per sequence and route, or per sample of it) as arrays, checked to be complete."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from depthdial.checks import choice
from depthdial.errors import InputError
from depthdial.metrics import MEASURED
from depthdial.oracles.costs import (
    LAYER_STEPS,
    LAYERS,
    LAYERS_COLUMN,
    SECONDS_COLUMN,
    TOKENS_COLUMN,
    CostReader,
    cost_columns,
)
from depthdial.oracles.modelled import LAYERS_TEXT, MODELLED_FROM, loaded_latency, modelled_sec
from depthdial.stats.intervals import coded

# Costs of the samples of a cell that differ by less are equal.
_COST_RTOL = 1e-9


class Rows(Protocol):
    """What `table[name]` turns into a column: a dict of arrays, a pyarrow.Table, a pandas.DataFrame."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores and costs of every route on every sequence.

    Attributes:
        sequence_ids: in the order in which the rows first name them.
        routes: in order of mean cost (as the rows first name them where equal).
        values: (n_sequences, n_routes) of the metric; of sampled answers (n_sequences, n_routes, n_samples), in the order of
            their numbers.
        costs: (n_sequences, n_routes), of layer-steps the counts themselves; of sampled answers the mean over a cell's
            samples, taken for the expected cost, and for known before the answer.
        weights: (n_sequences,), what a sequence's cost weighs in the mean; None for equal weights.
        cost: the name of what `costs` count.
        full_costs: (n_sequences,) what each sequence adds to the total that a total cost is divided by, of layer-steps the
            full route's; None for a mean over sequences.
        tokens: (n_sequences,) tokens of the full route's answers, where the rows have them.
        n_layers: layers of the full model, where the rows tell.
        layers, ms: (n_sequences, n_routes) layers run and measured milliseconds, where the rows have them all.
    """

    sequence_ids: tuple[Hashable, ...]
    routes: tuple[str, ...]
    values: np.ndarray
    costs: np.ndarray
    weights: np.ndarray | None = None
    cost: str = LAYERS
    full_costs: np.ndarray | None = None
    tokens: np.ndarray | None = None
    n_layers: int | None = None
    layers: np.ndarray | None = None
    ms: np.ndarray | None = None

    @property
    def spent(self) -> np.ndarray:
        """(n_sequences, n_routes) costs as they add up, weighted."""
        return self.costs if self.weights is None else self.costs * self.weights[:, None]

    @property
    def bases(self) -> np.ndarray:
        """(n_sequences,) what each sequence adds to the total that a total of `spent` is divided by."""
        base = np.ones(len(self.costs)) if self.full_costs is None else self.full_costs
        return base if self.weights is None else base * self.weights

    def mean_costs(self) -> np.ndarray:
        """(n_routes,) cost of each route when it serves every sequence: of layer-steps a share, exactly 1 for full."""
        # Each column is summed alike, so that one that equals `bases` gives 1.
        sums = np.array([column.sum() for column in np.ascontiguousarray(self.spent.T)])
        return sums / np.ascontiguousarray(self.bases).sum()

    def beside(self, choice: np.ndarray | None) -> dict[str, float | None]:
        """What (n_sequences,) chosen routes come to in other units: layers and ms per sequence, and both means of values.

        Entries are None where the rows do not tell, or nothing is chosen.
        """

        def mean(table: np.ndarray | None, weights: np.ndarray | None = None) -> float | None:
            if choice is None or table is None:
                return None
            return float(np.average(table[np.arange(len(choice)), choice], weights=weights))

        return {
            "layers": mean(self.layers),
            "ms": mean(self.ms),
            "mean_over_sequences": mean(self.values),
            "by_tokens": None if self.tokens is None else mean(self.values, self.tokens),
        }

    def value_weights(self, quality: str) -> np.ndarray | None:
        """(n_sequences,) what a sequence's value weighs in a mean: None for `sequences`, else full answers' tokens."""
        choice("quality", quality, ("sequences", "tokens"))
        if quality == "sequences":
            return None
        if self.tokens is None:
            raise InputError(
                "The rows do not say how many tokens the full model's answers have (new_tokens): give quality='sequences'."
            )
        return self.tokens


def read_scores(
    rows: Rows,
    *,
    metric: str,
    cost: str,
    sequence: str,
    route: str,
    full_route: str | None = "full",
    weight_by: str | None = None,
    steps: str = "own",
    sample: str | None = None,
    latency: Any = None,
    latency_rows: int = 1,
) -> ScoreTable:
    """Pivot the rows; costs are per-sequence layers where layer-steps are asked for and rows tell of no decoding steps.

    The weight of a sequence is its `weight_by` in the row of `full_route`, or its mean over the routes without one.

    Args:
        sample: the column that numbers several answers of each (sequence, route); None for one answer.
        latency, latency_rows: milliseconds by a latency model at so many rows, in place of measured ones; of several answers
            the mean, as of layer-steps.

    Raises:
        InputError: for a missing column, a missing or double row, a NaN, or a cost other than layer-steps that differs
            between the samples of a cell.
    """
    grid = _Grid.of(rows, {"sequence": sequence, "route": route, **({} if sample is None else {"sample": sample})})
    sequence_ids, routes = (grid.axes[axis] for axis in ("sequence", "route"))
    full = routes.index(full_route) if full_route in routes else None
    values = grid.pivot(metric, instead=MEASURED)
    reader = CostReader(grid.gaps, grid.pivot, full, steps)
    # Layer-steps weigh by steps themselves.
    if latency is not None:
        seconds = modelled_sec(_modelled_from(grid, reader), loaded_latency(latency, cost), latency_rows)
        costs, full_costs = 1e3 * grid.placed(seconds), None
        costs = costs.mean(axis=2) if costs.ndim == 3 else costs
    else:
        cost, costs, full_costs = reader.read(LAYERS if weight_by is not None and cost == LAYER_STEPS else cost)
    if costs.ndim == 3:
        costs = _known_before(cost, costs)
    weights = None
    if weight_by is not None:
        weight = grid.pivot(weight_by)
        weights = weight.mean(axis=1) if full is None else weight[:, full]
    order = np.argsort(costs.mean(axis=0), kind="stable")
    layers, seconds = (
        array[:, order] if array is not None and sample is None and np.isfinite(array).all() else None
        for array in map(reader.pivot, (LAYERS_COLUMN, SECONDS_COLUMN))
    )
    return ScoreTable(
        tuple(sequence_ids),
        tuple(str(routes[i]) for i in order),
        values[:, order],
        costs[:, order],
        weights,
        cost,
        full_costs,
        reader.full_tokens(),
        reader.n_layers(),
        layers,
        None if seconds is None else 1e3 * seconds,
    )


def read_samples(rows: Rows, *, sample: str, **columns: Any) -> ScoreTable:
    """Pivot rows that number several answers of each (sequence, route); `columns` as in `read_scores`.

    Raises:
        InputError: as there, and for greedy rows, an odd number of samples or one alone (halves are needed).
    """
    numbers = np.asarray(rows[sample]).tolist() if sample in column_names(rows) else []
    n_samples = len({number for number in numbers if number is not None and number == number})
    if not n_samples:
        raise InputError(
            f"The rows hold one answer of each route to each sequence (no column {sample!r} with numbers); "
            "sweep with samples=8, say, so that there is one half to choose on and another to score on."
        )
    if n_samples % 2:
        raise InputError(
            f"The rows hold {n_samples} sampled answer{'s' * (n_samples > 1)} of each route to each sequence; an even "
            "number is needed, one half to choose on and the other to score on."
        )
    return read_scores(rows, sample=sample, **columns)


def _modelled_from(grid: _Grid, reader: CostReader) -> dict[str, np.ndarray]:
    """(n_rows,) columns that modelled seconds are read from: those that there are, with the steps that are asked for."""
    known, found = column_names(grid.rows), {}
    for name in MODELLED_FROM:
        if name == LAYERS_TEXT and name in known:
            found[name] = column_of(grid.rows, name)
            grid.check_length(name, found[name])
        elif (table := grid.gaps(name)) is not None:
            found[name] = grid.by_row(table)
    steps = reader.decoding_steps()
    return found if steps is None else found | {TOKENS_COLUMN: grid.by_row(steps) + 1}


def _known_before(cost: str, costs: np.ndarray) -> np.ndarray:
    """(n_sequences, n_routes) costs that are the same for all samples of a cell."""
    if (np.ptp(costs, axis=2) > _COST_RTOL * np.abs(costs).max()).any():
        raise InputError(
            f"The cost {cost_columns(cost)[0]!r} differs between the samples of one route and sequence; name one "
            "that is known before the answer, such as layers, or layer_steps, of which the expected cost is known."
        )
    return costs[:, :, 0]


@dataclass(frozen=True)
class _Grid:
    """Where the rows of a table belong in an array.

    Attributes:
        axes: what the axes stand for, with the entries of each.
        order: (n_rows,) rows in the order of their places.
        first: the column of the first axis.
    """

    rows: Rows
    axes: Mapping[str, list[Any]]
    order: np.ndarray
    first: str

    @classmethod
    def of(cls, rows: Rows, columns: Mapping[str, str]) -> _Grid:
        """With an axis for each of the named columns; InputError unless every cell has one row."""
        coded = {axis: _coded(column_of(rows, name), name) for axis, name in columns.items()}
        if len({len(codes) for _, codes in coded.values()}) > 1:
            names = " and ".join(map(repr, columns.values()))
            raise InputError(f"The columns {names} differ in length; give one table.")
        axes = {axis: entries for axis, (entries, _) in coded.items()}
        codes = {axis: numbers for axis, (_, numbers) in coded.items()}
        if "sample" in axes:  # in the order of their numbers, so that the order of the rows does not matter
            codes["sample"] = np.argsort(np.argsort(axes["sample"]))[codes["sample"]]
            axes["sample"] = sorted(axes["sample"])
        if not len(codes["sequence"]):
            raise InputError("The table has no rows; sweep at least one sequence over one route.")
        cells = np.ravel_multi_index(tuple(codes.values()), tuple(map(len, axes.values())))
        grid = cls(rows, axes, np.argsort(cells), columns["sequence"])
        grid.check_complete(cells)
        return grid

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes.values()))

    def name(self, cell: int) -> str:
        places = np.unravel_index(cell, self.shape)
        return ", ".join(f"{axis} {self.axes[axis][i]!r}" for axis, i in zip(self.axes, places, strict=True))

    def check_complete(self, cells: np.ndarray) -> None:
        rows_per_cell, kind = np.bincount(cells, minlength=int(np.prod(self.shape))), " and ".join(self.axes)
        for wrong, complaint, remedy in (
            (rows_per_cell > 1, "several rows", f"keep one row for each {kind}"),
            (rows_per_cell == 0, "no row", f"every {kind} needs one"),
        ):
            if wrong.any():
                raise InputError(f"The table has {complaint} for {self.name(int(wrong.argmax()))}; {remedy}.")

    def pivot(self, name: str, instead: Iterable[str] = ()) -> np.ndarray:
        """A numeric column as an array of the grid's shape; InputError if it is none or holds a NaN.

        Args:
            instead: metrics, of which the message names those that these rows hold everywhere.
        """
        placed = self._placed(name)
        bad = np.flatnonzero(~np.isfinite(placed.ravel()))
        if len(bad):
            others = [one for one in instead if (held := self.gaps(one)) is not None and np.isfinite(held).all()]
            remedy = f"take another metric, these rows hold all of {', '.join(others)}, or " if others else ""
            raise InputError(
                f"The column {name!r} holds NaN or infinite numbers ({len(bad)} rows, the first: "
                f"{self.name(int(bad[0]))}); {remedy}repair those rows or leave their sequences out."
            )
        return placed

    def gaps(self, name: str) -> np.ndarray | None:
        """A numeric column with its NaNs; None if there is no such column."""
        return self._placed(name) if name in column_names(self.rows) else None

    def _placed(self, name: str) -> np.ndarray:
        column = column_of(self.rows, name)
        try:
            column = column.astype(float)
        except (TypeError, ValueError):
            raise InputError(f"The column {name!r} does not hold numbers; name a numeric column.") from None
        if column.ndim != 1:
            raise InputError(f"The column {name!r} has shape {column.shape}; give one number per row.")
        self.check_length(name, column)
        return self.placed(column)

    def check_length(self, name: str, column: np.ndarray) -> None:
        if len(column) != len(self.order):
            raise InputError(f"The columns {name!r} and {self.first!r} differ in length; give one table.")

    def placed(self, column: np.ndarray) -> np.ndarray:
        """(n_rows,) as an array of the grid's shape."""
        return column[self.order].reshape(self.shape)

    def by_row(self, table: np.ndarray) -> np.ndarray:
        """(n_rows,) entries of an array of the grid's shape, in the order of the rows."""
        column = np.empty(table.size, dtype=table.dtype)
        column[self.order] = table.ravel()
        return column


def column_of(rows: Rows, name: str) -> np.ndarray:
    try:
        return np.asarray(rows[name])
    except (KeyError, IndexError, TypeError, ValueError):
        known = column_names(rows)
        hint = f"it has {', '.join(known)}" if known else "give a dict of arrays, a pyarrow.Table or a pandas.DataFrame"
        raise InputError(f"The table has no column {name!r}; {hint}.") from None


def column_names(rows: Any) -> list[str]:
    names: Iterable[Any] = getattr(rows, "column_names", None) or (
        rows.keys() if isinstance(rows, Mapping) else getattr(rows, "columns", ())
    )
    return [str(name) for name in names]


def _coded(column: np.ndarray, name: str) -> tuple[list[Any], np.ndarray]:
    """The distinct entries in order of appearance, and the number of each row's entry."""
    if column.ndim != 1:
        raise InputError(f"The column {name!r} has shape {column.shape}; give one entry per row.")
    entries = column.tolist()
    if any(entry is None or entry != entry for entry in entries):
        raise InputError(f"The column {name!r} has empty entries; every row needs one.")
    return coded(entries)
