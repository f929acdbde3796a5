"""A table of rows (one per sequence and route, or per sample of it) as arrays, checked to be complete."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from depthdial.errors import InputError

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
        values, costs: (n_sequences, n_routes), the metric and the cost as they stand in the rows.
        weights: (n_sequences,), what a sequence's cost weighs in the mean; None for equal weights.
    """

    sequence_ids: tuple[Hashable, ...]
    routes: tuple[str, ...]
    values: np.ndarray
    costs: np.ndarray
    weights: np.ndarray | None = None

    def mean_costs(self) -> np.ndarray:
        """Mean cost of each route when it serves every sequence (weighted by `weights`), shape (n_routes,)."""
        return np.average(self.costs, axis=0, weights=self.weights)


@dataclass(frozen=True, eq=False)
class SampledScores:
    """Scores of several sampled answers of every route to every sequence.

    Attributes:
        sequence_ids: in the order in which the rows first name them.
        routes: in order of mean cost (as the rows first name them where equal).
        values: (n_sequences, n_routes, n_samples), the metric, samples in the order of their numbers.
        costs: (n_sequences, n_routes), the same for all samples of a cell.
    """

    sequence_ids: tuple[Hashable, ...]
    routes: tuple[str, ...]
    values: np.ndarray
    costs: np.ndarray


def read_scores(
    rows: Rows,
    *,
    metric: str,
    cost: str,
    sequence: str,
    route: str,
    full_route: str | None,
    weight_by: str | None,
) -> ScoreTable:
    """Pivot the rows; InputError for a missing column, a missing or double (sequence, route), or a NaN.

    The weight of a sequence is its `weight_by` in the row of `full_route`, or its mean over the routes without one.
    """
    sequence_ids, sequence_codes = _coded(_column(rows, sequence), sequence)
    routes, route_codes = _coded(_column(rows, route), route)
    if len(sequence_codes) != len(route_codes):
        raise InputError(f"The columns {sequence!r} and {route!r} differ in length; give one table.")
    if not len(sequence_codes):
        raise InputError("The table has no rows; sweep at least one sequence over one route.")
    grid = _Grid({"sequence": sequence_ids, "route": routes}, sequence_codes * len(routes) + route_codes)
    grid.check_complete("keep one row per sequence and route", "every route must have run on every sequence")
    values, costs = (grid.pivot(rows, name, sequence) for name in (metric, cost))
    weights = None
    if weight_by is not None:
        weight = grid.pivot(rows, weight_by, sequence)
        weights = weight[:, routes.index(full_route)] if full_route in routes else weight.mean(axis=1)
    table = ScoreTable(tuple(sequence_ids), tuple(str(name) for name in routes), values, costs, weights)
    by_cost = np.argsort(costs.mean(axis=0), kind="stable")
    ordered = tuple(table.routes[i] for i in by_cost)
    return ScoreTable(table.sequence_ids, ordered, values[:, by_cost], costs[:, by_cost], weights)


def read_samples(rows: Rows, *, metric: str, cost: str, sequence: str, route: str, sample: str) -> SampledScores:
    """Pivot rows that number several answers of each (sequence, route).

    Raises:
        InputError: for greedy rows, an odd number of samples or one alone (halves are needed), a missing or double row,
            a NaN, or a cost that is known only after an answer, as it differs between the samples of a cell.
    """
    numbers = np.asarray(rows[sample]) if sample in _column_names(rows) else np.empty(0)
    if not any(entry is not None and entry == entry for entry in numbers.tolist()):
        raise InputError(
            f"The rows hold one answer of each route to each sequence (no column {sample!r} with numbers); "
            "sweep with samples=8, say, so that there is one half to choose on and another to score on."
        )
    sequence_ids, sequence_codes = _coded(_column(rows, sequence), sequence)
    routes, route_codes = _coded(_column(rows, route), route)
    samples, sample_codes = _coded(numbers, sample)
    if not len(sequence_codes) == len(route_codes) == len(sample_codes):
        raise InputError(f"The columns {sequence!r}, {route!r} and {sample!r} differ in length; give one table.")
    # In the order of their numbers, so that the order of the rows does not matter.
    sample_codes, samples = np.argsort(np.argsort(samples))[sample_codes], sorted(samples)
    if len(samples) % 2:
        raise InputError(
            f"The rows hold {len(samples)} sampled answer{'s' * (len(samples) > 1)} of each route to each sequence; an even "
            "number is needed, one half to choose on and the other to score on."
        )
    codes = (sequence_codes * len(routes) + route_codes) * len(samples) + sample_codes
    grid = _Grid({"sequence": sequence_ids, "route": routes, "sample": samples}, codes)
    grid.check_complete("keep one row per sample", "every route needs the same samples on every sequence")
    values, costs = (grid.pivot(rows, name, sequence) for name in (metric, cost))
    if (np.ptp(costs, axis=2) > _COST_RTOL * np.abs(costs).max()).any():
        raise InputError(
            f"The cost {cost!r} differs between the samples of one route and sequence; name one that is known before the "
            "answer, such as layers_run."
        )
    by_cost = np.argsort(costs.mean(axis=(0, 2)), kind="stable")
    return SampledScores(
        tuple(sequence_ids), tuple(str(routes[i]) for i in by_cost), values[:, by_cost], costs[:, by_cost, 0]
    )


@dataclass(frozen=True)
class _Grid:
    """Where the rows of a table belong in an array.

    Attributes:
        axes: what the axes stand for, with the entries of each.
        cells: (n_rows,) flat index of each row's place.
    """

    axes: Mapping[str, list[Any]]
    cells: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes.values()))

    def name(self, cell: int) -> str:
        places = np.unravel_index(cell, self.shape)
        return ", ".join(f"{axis} {self.axes[axis][i]!r}" for axis, i in zip(self.axes, places, strict=True))

    def check_complete(self, remedy_double: str, remedy_missing: str) -> None:
        rows_per_cell = np.bincount(self.cells, minlength=int(np.prod(self.shape)))
        for wrong, complaint, remedy in (
            (rows_per_cell > 1, "several rows", remedy_double),
            (rows_per_cell == 0, "no row", remedy_missing),
        ):
            if wrong.any():
                raise InputError(f"The table has {complaint} for {self.name(int(wrong.argmax()))}; {remedy}.")

    def pivot(self, rows: Rows, name: str, sequence: str) -> np.ndarray:
        """A numeric column as an array of the grid's shape; InputError if it is none or holds a NaN."""
        column = _numbers(_column(rows, name), name)
        if len(column) != len(self.cells):
            raise InputError(f"The columns {name!r} and {sequence!r} differ in length; give one table.")
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise InputError(
                f"The column {name!r} holds NaN or infinite numbers ({len(bad)} rows, the first: "
                f"{self.name(int(self.cells[bad[0]]))}); repair those rows or leave their sequences out."
            )
        return column[np.argsort(self.cells)].reshape(self.shape)


def _column(rows: Rows, name: str) -> np.ndarray:
    try:
        return np.asarray(rows[name])
    except (KeyError, IndexError, TypeError, ValueError):
        known = _column_names(rows)
        hint = f"it has {', '.join(known)}" if known else "give a dict of arrays, a pyarrow.Table or a pandas.DataFrame"
        raise InputError(f"The table has no column {name!r}; {hint}.") from None


def _column_names(rows: Any) -> list[str]:
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
    numbers: dict[Any, int] = {}
    codes = np.fromiter((numbers.setdefault(entry, len(numbers)) for entry in entries), dtype=np.int64)
    return list(numbers), codes


def _numbers(column: np.ndarray, name: str) -> np.ndarray:
    try:
        numbers = column.astype(float)
    except (TypeError, ValueError):
        raise InputError(f"The column {name!r} does not hold numbers; name a numeric column.") from None
    if numbers.ndim != 1:
        raise InputError(f"The column {name!r} has shape {numbers.shape}; give one number per row.")
    return numbers
