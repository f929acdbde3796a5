"""A gates study's rows, gathered by controller, target and mode: what its tables and figures are made from. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.rows.gates import CONTROLLERS, MODES, require_gate_rows
from depthdial.stats.equivalence import Curve
from depthdial.stats.intervals import Interval, coded, known_interval

# ROUGE is told in points, of which an equivalence margin of 1 speaks.
POINTS = {"rouge_1": 100.0, "rouge_2": 100.0, "rouge_l": 100.0}
MARGIN_POINTS = 1.0
_NUMBERS = (
    *("layers_run", "new_tokens", "rouge_1", "rouge_2", "rouge_l", "nll", "kl", "agreement"),
    *("decode_flops", "decide_flops", "head_flops", "batch_size", "batch_steps", "batch_decode_sec"),
)


@dataclass(frozen=True)
class GateCell:
    """All rows of one controller at one target in one mode.

    Attributes:
        target: fraction of the layers that was asked for; None for the full model.
        seeds: of the trainings, ascending; (None,) where nothing was trained.
        columns: (n_seeds, n_sequences) by name, NaN where a row or its number is missing; ROUGE in points (x 100).
    """

    controller: str
    target: float | None
    mode: str
    n_layers: int
    seeds: tuple[int | None, ...]
    sequence_ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def by_seed(self, column: str) -> np.ndarray:
        """(n_seeds,) means over the sequences that have a number; NaN for a seed without any."""
        return _row_means(self.columns[column])

    def interval(self, column: str) -> Interval | None:
        """Mean and 95% interval: over the seeds' means, or over sequences where there is one seed; None without a number."""
        means = self.by_seed(column)
        return known_interval(means if len(self.seeds) > 1 else self.columns[column][0])

    def mean(self, column: str) -> float | None:
        found = self.interval(column)
        return None if found is None else found.mean

    @property
    def cost(self) -> float:
        """Mean layers run for a response token, as a fraction of all; NaN without a response."""
        layers = self.mean("layers_run")
        return np.nan if layers is None else layers / self.n_layers

    def total(self, column: str) -> float:
        return float(np.nansum(self.columns[column]))

    def flops_per_token(self, *columns: str) -> float | None:
        """Of one decoding step: all tokens but the first, which the prompt's pass gives."""
        tokens = self.columns["new_tokens"]
        steps = float(np.nansum(np.maximum(tokens - 1, 0)))
        have = [name for name in columns if np.isfinite(self.columns[name]).any()]
        return sum(self.total(name) for name in have) / steps if have and steps else None

    def step_time_against(self, full: GateCell) -> float | None:
        """Measured seconds of a decoding step over the full model's on the same sequences, the median of these ratios.

        None unless sequences were decoded in batches of the same size.
        """
        mine, theirs = self._step_sec(), full._step_sec()
        places = {sequence: i for i, sequence in enumerate(full.sequence_ids)}
        where = [places.get(sequence, -1) for sequence in self.sequence_ids]
        sizes = np.append(full.columns["batch_size"][0], np.nan)[where]
        ratios = np.where(self.columns["batch_size"] == sizes, mine / np.append(theirs[0], np.nan)[where], np.nan)
        ratios = ratios[np.isfinite(ratios)]
        return float(np.median(ratios)) if len(ratios) else None

    def _step_sec(self) -> np.ndarray:
        steps = self.columns["batch_steps"]
        return np.divide(self.columns["batch_decode_sec"], steps, out=np.full(steps.shape, np.nan), where=steps > 0)


def gather_gates(rows: Any) -> list[GateCell]:
    """Rows by controller, target and mode: the full model first, then as CONTROLLERS lists them, costliest first.

    Raises:
        InputError: if the table is no gates study's (see `measure.gate_rows`).
    """
    require_gate_rows(rows)
    keys = {name: rows[name].to_pylist() for name in ("controller", "target", "mode", "train_seed", "sequence_id")}
    targets = [None if target is None else round(float(target), 6) for target in keys["target"]]
    numbers = {name: _as_floats(rows[name]) * POINTS.get(name, 1.0) for name in _NUMBERS}
    n_layers, found = int(rows["n_layers"][0].as_py()), []
    labels, codes = coded(zip(keys["controller"], targets, keys["mode"], strict=True))
    for place, (controller, target, mode) in enumerate(labels):
        at = np.flatnonzero(codes == place)
        seeds = sorted({keys["train_seed"][i] for i in at}, key=lambda seed: (seed is not None, seed))
        sequences, across = coded(keys["sequence_id"][i] for i in at)
        where = [seeds.index(keys["train_seed"][i]) for i in at], across
        columns = {}
        for name, values in numbers.items():
            columns[name] = np.full((len(seeds), len(sequences)), np.nan)
            columns[name][where] = values[at]
        found.append(GateCell(controller, target, mode, n_layers, tuple(seeds), tuple(sequences), columns))
    return sorted(found, key=_rank)


def gathered(rows: Any) -> list[GateCell]:
    """`gather_gates` of rows, or its own result as it is."""
    return rows if isinstance(rows, list) else gather_gates(rows)


def full_cell(cells: Sequence[GateCell]) -> GateCell | None:
    return next((cell for cell in cells if cell.controller == "full"), None)


@dataclass(frozen=True)
class Pair:
    """Two controllers at one target in one mode, on the seeds and sequences that both have.

    Attributes:
        a, b: (n_seeds, n_sequences) scores, all there, of the trainings `seeds` and of `sequence_ids`.
        cost_a, cost_b: (n_seeds,) fractions of the layers that ran.
    """

    target: float
    mode: str
    seeds: tuple[int | None, ...]
    sequence_ids: tuple[str, ...]
    a: np.ndarray
    b: np.ndarray
    cost_a: np.ndarray
    cost_b: np.ndarray

    @property
    def points_a(self) -> list[tuple[float, float]]:
        """(cost, score) of every seed."""
        return list(zip(self.cost_a.tolist(), self.a.mean(axis=1).tolist(), strict=True))

    @property
    def points_b(self) -> list[tuple[float, float]]:
        return list(zip(self.cost_b.tolist(), self.b.mean(axis=1).tolist(), strict=True))


def pairs_of(cells: Sequence[GateCell], a: str, b: str, metric: str) -> list[Pair]:
    """Every target and mode at which both were measured on the same sequences, as `cells` are ordered.

    Seeds are paired with themselves; a control that nothing was trained for stands against each seed of the other, and one
    without modes against both.
    """
    seconds = {(cell.target, cell.mode): cell for cell in cells if cell.controller == b}
    found = []
    for first in (cell for cell in cells if cell.controller == a and cell.target is not None):
        second = seconds.get((first.target, first.mode), seconds.get((first.target, "none")))
        pair = None if second is None else _paired(first, second, metric)
        if pair is not None:
            found.append(pair)
    return found


def curves_of(pairs: Sequence[Pair], seeds: Sequence[int | None]) -> tuple[list[Curve], list[Curve]]:
    """The cost-score curves of both controllers for each seed, over pairs of one mode that all have these seeds."""
    a: list[Curve] = [[pair.points_a[pair.seeds.index(seed)] for pair in pairs] for seed in seeds]
    b: list[Curve] = [[pair.points_b[pair.seeds.index(seed)] for pair in pairs] for seed in seeds]
    return a, b


def _paired(first: GateCell, second: GateCell, metric: str) -> Pair | None:
    is_untrained = second.seeds == (None,)
    seeds = [seed for seed in first.seeds if is_untrained or seed in second.seeds]
    sequences = [sequence for sequence in first.sequence_ids if sequence in set(second.sequence_ids)]

    def chosen(cell: GateCell, column: str) -> np.ndarray:
        rows = [0 if cell is second and is_untrained else cell.seeds.index(seed) for seed in seeds]
        places = {sequence: i for i, sequence in enumerate(cell.sequence_ids)}
        return cell.columns[column][np.ix_(rows, [places[s] for s in sequences])]

    if not seeds or not sequences:
        return None
    a, b = chosen(first, metric), chosen(second, metric)
    complete = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)  # a sequence without a reference has no score
    if not complete.any() or first.target is None:
        return None
    cost_a, cost_b = (_row_means(chosen(cell, "layers_run")[:, complete]) / cell.n_layers for cell in (first, second))
    ids = tuple(sequences[i] for i in np.flatnonzero(complete))
    return Pair(first.target, first.mode, tuple(seeds), ids, a[:, complete], b[:, complete], cost_a, cost_b)


def _row_means(values: np.ndarray) -> np.ndarray:
    """(n_rows,) means of what is there; NaN for a row without a number."""
    counts = np.isfinite(values).sum(axis=1)
    return np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


def _rank(cell: GateCell) -> tuple[int, int, float]:
    order = ("full", *(name for name in CONTROLLERS if name != "full"))
    return MODES.index(cell.mode) if cell.controller != "full" else -1, order.index(cell.controller), -(cell.target or 1.0)


def _as_floats(column: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=float)
