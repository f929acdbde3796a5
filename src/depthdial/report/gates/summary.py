"""A gates study's rows, gathered by controller, target and mode: what its tables and figures are made from. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.metrics import higher_is_better
from depthdial.rows.gates import CONTROLLERS, MODES, require_gate_rows
from depthdial.stats.intervals import Interval, coded, known_interval

ROUGE, MARGIN_POINTS = "rouge_l", 1.0  # told in points (x 100), of which the margin of equivalence speaks
METRICS = {"rouge_l": "ROUGE-L (points)", "nll": "NLL (nats per token)", "agreement": "greedy agreement"}
A, B = "hidden", "fixed"  # the inputs of the paper's question: does the first help over the second?
_NUMBERS = (
    *("layers_run", "new_tokens", *METRICS),
    *("decode_flops", "decide_flops", "head_flops", "batch_size", "batch_steps", "batch_decode_sec"),
)


@dataclass(frozen=True)
class GateCell:
    """All rows of one controller at one target in one mode.

    Attributes:
        target: fraction of the layers that was asked for; None for the full model.
        seeds: of the trainings, ascending; (None,) where nothing was trained.
        sequence_ids: of all cells, in one order.
        columns: (n_seeds, n_sequences) by name, NaN where a row or its number is missing; ROUGE in points (x 100).
    """

    controller: str
    target: float | None
    mode: str
    n_layers: int
    seeds: tuple[int | None, ...]
    sequence_ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def interval(self, column: str) -> Interval | None:
        """Mean and 95% interval: over the seeds' means, or over sequences where there is one seed; None without a number."""
        values = self.columns[column]
        return known_interval(_row_means(values) if len(self.seeds) > 1 else values[0])

    def mean(self, column: str) -> float | None:
        return found.mean if (found := self.interval(column)) else None

    @property
    def cost(self) -> float:
        """Mean layers run for a response token, as a fraction of all; NaN without a response."""
        layers = self.mean("layers_run")
        return np.nan if layers is None else layers / self.n_layers

    def flops_per_token(self, *columns: str) -> float | None:
        """Of one decoding step: all tokens but the first, which the prompt's pass gives."""
        steps = float(np.nansum(np.maximum(self.columns["new_tokens"] - 1, 0)))
        have = [self.columns[name] for name in columns if np.isfinite(self.columns[name]).any()]
        return sum(float(np.nansum(flops)) for flops in have) / steps if have and steps else None

    def step_time_against(self, full: GateCell) -> float | None:
        """Measured seconds of a decoding step over the full model's on the same sequences, the median of these ratios.

        None unless sequences were decoded in batches of the same size.
        """
        ratios = (self._step_sec() / full._step_sec())[self.columns["batch_size"] == full.columns["batch_size"]]
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
    numbers = {name: rows[name].to_numpy().astype(float) for name in _NUMBERS}
    numbers[ROUGE] = 100 * numbers[ROUGE]
    n_layers, found = int(rows["n_layers"][0].as_py()), []
    labels, codes = coded(zip(keys["controller"], targets, keys["mode"], strict=True))
    sequences, across = coded(keys["sequence_id"])
    for place, (controller, target, mode) in enumerate(labels):
        at = np.flatnonzero(codes == place)
        seeds = sorted({keys["train_seed"][i] for i in at}, key=lambda seed: (seed is not None, seed))
        where = [seeds.index(keys["train_seed"][i]) for i in at], across[at]
        columns = {}
        for name, values in numbers.items():
            columns[name] = np.full((len(seeds), len(sequences)), np.nan)
            columns[name][where] = values[at]
        found.append(GateCell(controller, target, mode, n_layers, tuple(seeds), tuple(sequences), columns))
    return sorted(found, key=_rank)


def metrics_of(cells: Sequence[GateCell]) -> list[str]:
    """Those of METRICS that some cell has."""
    return [name for name in METRICS if any(cell.interval(name) for cell in cells)]


@dataclass(frozen=True)
class Pair:
    """Two controllers by one metric, at one target in one mode, on the seeds and sequences that both have.

    Attributes:
        a, b: (n_seeds, n_sequences) scores, all there, of the trainings `seeds` and of `sequence_ids`.
        cost_a, cost_b: (n_seeds,) fractions of the layers that ran.
    """

    metric: str
    target: float
    mode: str
    seeds: tuple[int | None, ...]
    sequence_ids: tuple[str, ...]
    a: np.ndarray
    b: np.ndarray
    cost_a: np.ndarray
    cost_b: np.ndarray

    @property
    def judged(self) -> dict[str, Any]:
        """How differences are judged: a margin was stated for ROUGE alone, so that other metrics are never equivalent."""
        margin = MARGIN_POINTS if self.metric == ROUGE else None
        return {"margin": margin, "higher_is_better": higher_is_better(self.metric)}

    def points(self, seed: int | None) -> tuple[tuple[float, float], tuple[float, float]]:
        """(cost, score) of one seed, of both."""
        i, a, b = self.seeds.index(seed), self.a.mean(axis=1), self.b.mean(axis=1)
        return (self.cost_a[i], a[i]), (self.cost_b[i], b[i])


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


def _paired(first: GateCell, second: GateCell, metric: str) -> Pair | None:
    is_untrained = second.seeds == (None,)
    seeds = [seed for seed in first.seeds if is_untrained or seed in second.seeds]

    def chosen(column: str) -> list[np.ndarray]:
        rows = [first.seeds.index(s) for s in seeds], [0 if is_untrained else second.seeds.index(s) for s in seeds]
        return [cell.columns[column][of] for cell, of in zip((first, second), rows, strict=True)]

    complete = np.isfinite(chosen(metric)).all(axis=(0, 1))  # a sequence without a reference has no score
    if not seeds or not complete.any() or first.target is None:
        return None
    a, b = (scores[:, complete] for scores in chosen(metric))
    cost_a, cost_b = (_row_means(layers[:, complete]) / first.n_layers for layers in chosen("layers_run"))
    ids = tuple(first.sequence_ids[i] for i in np.flatnonzero(complete))
    return Pair(metric, first.target, first.mode, tuple(seeds), ids, a, b, cost_a, cost_b)


def _row_means(values: np.ndarray) -> np.ndarray:
    """(n_rows,) means of what is there; NaN for a row without a number."""
    counts = np.isfinite(values).sum(axis=1)
    return np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


def _rank(cell: GateCell) -> tuple[int, int, float]:
    mode = -1 if cell.controller == "full" else MODES.index(cell.mode)
    return mode, CONTROLLERS.index(cell.controller), -(cell.target or 1.0)
