"""Seconds of a pass, from measured cells: fixed(rows) + sum over the layers that run of layer(rows, context).

For every measured (rows, tokens) the three parts are fitted to the cells of all depths and contexts by least squares on
relative errors, none of them below 0. Over rows they are made to ascend (isotonic regression) and lie on straight lines
between the measured numbers; so do the lines over tokens. Below the fewest rows measured a pass costs what it costs there;
above the most it goes on along the last line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, nnls

from depthdial.errors import InputError
from depthdial.latency.cells import Cell


class Parts(NamedTuple):
    """Seconds of a pass: what it costs whatever runs, of each layer, and of each layer for a token in sight."""

    fixed_sec: float
    layer_sec: float
    context_sec: float

    def layer(self, context_tokens: float) -> float:
        return self.layer_sec + self.context_sec * context_tokens


@dataclass(frozen=True)
class Curve:
    """The parts over rows: (n,) rows and an (n, 3) array, both ascending."""

    rows: np.ndarray
    parts: np.ndarray

    def at(self, rows: float) -> np.ndarray:
        """(3,) parts at any number of rows."""
        return on_line(rows, self.rows, self.parts)


@dataclass(frozen=True)
class Passes:
    """Fitted passes; made by `fit`.

    Attributes:
        curves: by tokens of a row in the pass, ascending.
    """

    curves: Mapping[int, Curve]
    _known: dict[tuple[float, float], Parts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def parts(self, rows: float, tokens: float = 1) -> Parts:
        """At any number of rows and of tokens a row. More tokens never cost less."""
        key = (rows, tokens)
        if key not in self._known:  # a scheduler asks for the same few again and again
            self._known[key] = self._read(rows, tokens)
        return self._known[key]

    def _read(self, rows: float, tokens: float) -> Parts:
        sizes = np.array(list(self.curves), dtype=float)
        table = np.maximum.accumulate(np.stack([curve.at(rows) for curve in self.curves.values()]), axis=0)
        return Parts(*on_line(tokens, sizes, table).tolist())


def on_line(at: float, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ascending (n, k) `values` at (n,) `places`, read between them on straight lines.

    Below the first place its values hold; above the last the last line goes on, of one place alone the line through 0.
    """
    if at <= places[0]:
        return values[0]
    if at >= places[-1]:
        if len(places) == 1:
            return values[0] * (at / places[0])
        slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
        return values[-1] + slope * (at - places[-1])
    right = int(np.searchsorted(places, at, side="right"))
    share = (at - places[right - 1]) / (places[right] - places[right - 1])
    return (1 - share) * values[right - 1] + share * values[right]


def fit(cells: Sequence[Cell], weight_of: Mapping[str, float]) -> Passes:
    """The passes that cells of one kind tell of.

    Args:
        weight_of: by route, its number of layers, each counted by its share of a mean layer's time.

    Raises:
        InputError: if there is no cell, or a size was measured at one depth alone, which tells no layer from the rest.
    """
    if not cells:
        raise InputError("There is no measured pass to fit: run depthdial bench.")
    groups: dict[int, dict[int, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault(cell.tokens, {}).setdefault(cell.rows, []).append(cell)
    curves: dict[int, Curve] = {}
    for tokens, by_rows in sorted(groups.items()):
        # Passes of several tokens behind one context alone look at it as steps do: keys and values are read once.
        curves[tokens] = _curve(by_rows, weight_of, next(iter(curves.values()), None))
    return Passes(curves)


def _curve(by_rows: Mapping[int, Sequence[Cell]], weight_of: Mapping[str, float], steps: Curve | None) -> Curve:
    rows = sorted(by_rows)
    systems = [_System.of(by_rows[n], weight_of) for n in rows]
    for n, system in zip(rows, systems, strict=True):
        if len(np.unique(system.layers)) < 2:
            cell = by_rows[n][0]
            raise InputError(
                f"Passes of {n} rows with {cell.tokens} tokens were measured at one depth alone: bench at least two, such "
                "as --depths full,uls:50%."
            )
    # What a token in sight costs a row: where one context alone was measured, as at the nearest number of rows with two.
    two = [i for i, system in enumerate(systems) if len(np.unique(system.context)) > 1]
    context = np.zeros(len(rows))
    for i, system in enumerate(systems):
        if i in two:
            context[i] = system.solve()[2] / rows[i]
    for i in set(range(len(rows))) - set(two):
        if two:
            context[i] = context[min(two, key=lambda j: abs(rows[j] - rows[i]))]
        elif steps is not None and systems[i].context.any():
            context[i] = steps.at(rows[i])[2] / rows[i]
    context_sec = _ascending(context * rows)
    fixed = _ascending([system.solve(context=sec)[0] for system, sec in zip(systems, context_sec, strict=True)])
    layer = _ascending(
        [system.solve(fixed=f, context=sec)[1] for system, f, sec in zip(systems, fixed, context_sec, strict=True)]
    )
    return Curve(np.array(rows, dtype=float), np.stack([fixed, layer, context_sec], axis=1))


@dataclass(frozen=True)
class _System:
    """The cells of one size: (n,) layers that run, tokens in sight, and seconds."""

    layers: np.ndarray
    context: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, cells: Sequence[Cell], weight_of: Mapping[str, float]) -> _System:
        columns = zip(*((weight_of[cell.route], cell.context_tokens, cell.p50_sec) for cell in cells), strict=True)
        return cls(*(np.array(column, dtype=float) for column in columns))

    def solve(self, *, fixed: float | None = None, context: float | None = None) -> np.ndarray:
        """(3,) parts, all at least 0; those that are given stay as they are, the others fit what is left."""
        design = np.stack([np.ones_like(self.layers), self.layers, self.layers * self.context], axis=1)
        given = np.array([np.nan if fixed is None else fixed, np.nan, np.nan if context is None else context])
        free = np.isnan(given)
        left = self.seconds - design[:, ~free] @ given[~free]
        found = given.copy()
        found[free] = nnls(design[:, free] / self.seconds[:, None], left / self.seconds)[0]
        return found


def _ascending(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return isotonic_regression(np.asarray(values, dtype=float)).x
