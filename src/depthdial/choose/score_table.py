"""A table of rows (one per sequence and route) as arrays (sequence x route), checked to be complete."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from depthdial.errors import InputError


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
    cells = sequence_codes * len(routes) + route_codes
    _check_complete(cells, sequence_ids, routes)
    order = np.argsort(cells)

    def pivot(name: str) -> np.ndarray:
        column = _numbers(_column(rows, name), name)
        if len(column) != len(cells):
            raise InputError(f"The columns {name!r} and {sequence!r} differ in length; give one table.")
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            where = f"sequence {sequence_ids[sequence_codes[bad[0]]]!r}, route {routes[route_codes[bad[0]]]!r}"
            raise InputError(
                f"The column {name!r} holds NaN or infinite numbers ({len(bad)} rows, the first: {where}); "
                "repair those rows or leave their sequences out."
            )
        return column[order].reshape(len(sequence_ids), len(routes))

    values, costs = pivot(metric), pivot(cost)
    weights = None
    if weight_by is not None:
        weight = pivot(weight_by)
        weights = weight[:, routes.index(full_route)] if full_route in routes else weight.mean(axis=1)
    table = ScoreTable(tuple(sequence_ids), tuple(str(name) for name in routes), values, costs, weights)
    by_cost = np.argsort(costs.mean(axis=0), kind="stable")
    ordered = tuple(table.routes[i] for i in by_cost)
    return ScoreTable(table.sequence_ids, ordered, values[:, by_cost], costs[:, by_cost], weights)


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


def _check_complete(cells: np.ndarray, sequence_ids: list[Any], routes: list[Any]) -> None:
    rows_per_cell = np.bincount(cells, minlength=len(sequence_ids) * len(routes))
    for wrong, complaint in (
        (rows_per_cell > 1, "has several rows for {}; keep one row per sequence and route"),
        (rows_per_cell == 0, "has no row for {}; every route must have run on every sequence"),
    ):
        if wrong.any():
            sequence, route = divmod(int(wrong.argmax()), len(routes))
            raise InputError(
                "The table " + complaint.format(f"sequence {sequence_ids[sequence]!r}, route {routes[route]!r}") + "."
            )
