"""The tables of a gates study: what each controller costs and keeps, and whether one input helps over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from depthdial.metrics import higher_is_better
from depthdial.report.gates.summary import (
    MARGIN_POINTS,
    POINTS,
    GateCell,
    Pair,
    curves_of,
    full_cell,
    gathered,
    pairs_of,
)
from depthdial.report.kit.tables import Cells, Column, finished
from depthdial.stats.equivalence import (
    N_DRAWS,
    Difference,
    common_costs,
    difference_at_equal_cost,
    paired_over_seeds,
    paired_over_sequences,
)

ALL_TARGETS = "all"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


COLUMNS = (
    Column("flops_percent", "FLOPs, %", 1),
    Column("flops_head_percent", "FLOPs with head, %", 1),
    Column("rouge_l_points", "ROUGE-L, points", 2),
    Column("step_percent", "measured s per step, %", 1),
    Column("cost_a", "cost of the first, %", 1),
    Column("cost_b", "cost of the second, %", 1),
    Column("difference", "difference, over seeds"),
    Column("over_sequences", "over sequences"),
    Column("two_way", "over both"),
    Column("effect_size", "d_z over seeds", 2),
    Column("p_above", "p, above −margin", write=_p_value),
    Column("p_below", "p, below +margin", write=_p_value),
    Column("verdict", "verdict, over seeds"),
    Column("verdict_sequences", "verdict, over sequences"),
    Column("verdict_two_way", "verdict, over both"),
    Column("equal_cost", "equal cost, %", 1),
    Column("at_equal_cost", "difference at equal cost"),
    Column("verdict_equal_cost", "verdict at equal cost"),
)


def controllers_table(rows: Any) -> list[Cells]:
    """What each controller costs and keeps: a row for each controller, target and mode (the paper's Figure 1b).

    Keys: `controller`; `target`, `mode`; `seeds`, how many trainings; `layers` run for a response token and their
    `cost_percent`; `flops_percent` of the full model's a token, of the layers, of the keys and values of skipped tokens and
    of deciding, and `flops_head_percent` with the output head; `rouge_l_points` (x 100), `nll` (nats per token) and
    `agreement` as `Interval`s over the seeds, or over sequences where there is one seed; `step_percent`, measured seconds of
    a decoding step in % of the full model's (None where batch sizes differ). Columns without any number are left out.

    Args:
        rows: a gates study's rows as a pyarrow.Table (`measure.gate_rows.load_gate_rows`), or `gather_gates` of them.

    Raises:
        InputError: if they are no such rows.
    """
    cells = gathered(rows)
    full = full_cell(cells)
    table = [_controller_cells(cell, full) for cell in cells]
    return finished(table, COLUMNS, keep=("controller", "target", "mode", "seeds", "layers", "cost_percent"))


def differences_table(
    rows: Any,
    metric: str = "rouge_l",
    *,
    a: str = "hidden",
    b: str = "fixed",
    margin: float | None = None,
    n_draws: int = N_DRAWS,
) -> list[Cells]:
    """Whether `a` helps over `b`: a row for each target and mode that has both, and one over all targets of a mode.

    Keys: `target`, `mode`; `seeds` and `sequences` that both have; `cost_a`, `cost_b`, % of the layers run; `difference`,
    a minus b over seeds with its t interval; `over_sequences` and `two_way`, with bootstrap intervals over sequences, and
    over seeds and sequences together; `effect_size`, Cohen's d_z over seeds; `p_above` and `p_below`, of the two one-sided
    tests; `verdict` over seeds, `verdict_sequences` and `verdict_two_way`; `equal_cost` (% of the layers), `at_equal_cost`
    and `verdict_equal_cost`: the same over seeds with both curves read at one cost. The row of all targets takes each seed's
    mean over them. Verdicts are not corrected for the number of rows.

    Args:
        margin: of equivalence, in the unit of the table (points for ROUGE); None for 1 point of ROUGE, and for other metrics
            none, so that these are never called equivalent.

    Raises:
        InputError: if they are no such rows.
    """
    compare, table = _Comparison.of(metric, margin, n_draws), []
    for mode, pairs in _by_mode(pairs_of(gathered(rows), a, b, metric)).items():
        equal = compare.at_equal_cost(pairs)
        table += [{**compare.cells(pair, mode, pair.target), **cells} for pair, cells in zip(pairs, equal, strict=True)]
        pair, target = _overall(pairs)
        if target == ALL_TARGETS:
            table.append({**compare.cells(pair, mode, target), **compare.equal_cost_cells(None, None)})
    return finished(table, COLUMNS, keep=("target", "mode", "difference", "verdict"))


def controls_table(rows: Any, metric: str = "rouge_l", *, a: str = "hidden", n_draws: int = N_DRAWS) -> list[Cells]:
    """`a` against every other controller: for each and each mode the last row of `differences_table`, of all targets.

    Keys: `controller`, and of the row `mode`, `target`, `seeds`, `cost_a`, `cost_b`, `difference`, `over_sequences`,
    `two_way`, `effect_size`, `verdict`, `verdict_two_way`.
    """
    names = ("mode", "target", "seeds", "cost_a", "cost_b", "difference", "over_sequences", "two_way", "effect_size")
    compare, table = _Comparison.of(metric, None, n_draws), []
    cells = gathered(rows)
    for other in dict.fromkeys(cell.controller for cell in cells if cell.controller != a):
        for mode, pairs in _by_mode(pairs_of(cells, a, other, metric)).items():
            pair, target = _overall(pairs)
            found = compare.cells(pair, mode, target)
            table.append({"controller": other, **{name: found[name] for name in (*names, "verdict", "verdict_two_way")}})
    return finished(table, COLUMNS, keep=("controller", "mode", "target", "difference", "verdict"))


def answer_sentences(
    rows: Any, metric: str = "rouge_l", *, a: str = "hidden", b: str = "fixed", n_draws: int = N_DRAWS
) -> list[str]:
    """What the data say about `a` over `b`, a sentence for each mode: over all targets where there are several.

    The verdict is that over seeds, for these sequences; that over seeds and sequences together, for others too, follows.
    """
    compare, sentences = _Comparison.of(metric, None, n_draws), []
    decimals, unit = (2, "points") if metric in POINTS else (3, "")
    for mode, pairs in _by_mode(pairs_of(gathered(rows), a, b, metric)).items():
        pair, target = _overall(pairs)
        told = verdict_sentence(compare.over_seeds(pair), a, b, unit, decimals)
        both = compare.over_sequences(pair).two_way
        together = ""
        if both is not None:
            together = f" Seeds and sequences together: {both.verdict} ({_interval_text(both, decimals)})."
        where = f"mean of {len(pairs)} targets" if target == ALL_TARGETS else f"target {_target(target)}"
        scope = f"{mode.capitalize()} ({where}, {len(pair.seeds)} seeds, {pair.a.shape[1]} sequences)"
        sentences.append(f"{scope}: {told}.{together}")
    return sentences


def verdict_sentence(found: Difference, a: str, b: str, unit: str = "", decimals: int = 2) -> str:
    """The verdict with its numbers: "hidden helps: hidden minus fixed is +1.40 points (95% interval +0.61 to +2.19)"."""
    unit = unit and f" {unit}"
    interval = _interval_text(found, decimals) or "no interval, of one value"
    told = f"{a} minus {b} is {_signed(found.mean, decimals)}{unit} ({interval})"
    within = "" if found.margin is None else f"±{found.margin:g}{unit}"
    if found.is_equivalent:
        though = {1: f"; {a} is better, by less than that", -1: f"; {a} is worse, by less than that", 0: ""}[found.direction]
        return f"{found.verdict}: {told}, and its 90% interval lies within {within}{though}"
    if found.direction:
        return f"{a} {found.verdict}: {told}"
    return f"{found.verdict}: {told}, neither shown to differ from 0{within and f', nor shown to lie within {within}'}"


def _interval_text(found: Difference, decimals: int) -> str | None:
    low, high = found.interval_95.low, found.interval_95.high
    return None if math.isnan(low) else f"95% interval {_signed(low, decimals)} to {_signed(high, decimals)}"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class _Comparison:
    """How two controllers are held against each other: one metric, margin and number of draws for a whole table."""

    higher_is_better: bool
    margin: float | None
    n_draws: int

    @classmethod
    def of(cls, metric: str, margin: float | None, n_draws: int) -> _Comparison:
        if margin is None and metric in POINTS:
            margin = MARGIN_POINTS
        return cls(higher_is_better(metric), margin, n_draws)

    def over_seeds(self, pair: Pair) -> Difference:
        a, b = pair.a.mean(axis=1), pair.b.mean(axis=1)
        return paired_over_seeds(a, b, margin=self.margin, higher_is_better=self.higher_is_better)

    def over_sequences(self, pair: Pair) -> Difference:
        options = {"margin": self.margin, "higher_is_better": self.higher_is_better, "n_draws": self.n_draws}
        return paired_over_sequences(pair.a, pair.b, **options)

    def cells(self, pair: Pair, mode: str, target: float | str) -> Cells:
        seeds, sequences = self.over_seeds(pair), self.over_sequences(pair)
        two_way = sequences.two_way
        return {
            "target": _target(target),
            "mode": mode,
            "seeds": len(pair.seeds),
            "sequences": sequences.interval_95.n,
            "cost_a": 100 * float(pair.cost_a.mean()),
            "cost_b": 100 * float(pair.cost_b.mean()),
            "difference": seeds.interval_95,
            "over_sequences": sequences.interval_95,
            "two_way": None if two_way is None else two_way.interval_95,
            "effect_size": _finite(seeds.effect_size),
            "p_above": _finite(seeds.p_above),
            "p_below": _finite(seeds.p_below),
            "verdict": seeds.verdict,
            "verdict_sequences": sequences.verdict,
            "verdict_two_way": None if two_way is None else two_way.verdict,
        }

    def at_equal_cost(self, pairs: Sequence[Pair]) -> list[Cells]:
        """For each pair the difference where both controllers cost the same, near their mean cost."""
        seeds = [seed for seed in pairs[0].seeds if all(seed in pair.seeds for pair in pairs)]
        measured = all(np.isfinite([*pair.cost_a, *pair.cost_b]).all() for pair in pairs)
        if len(pairs) < 2 or not seeds or not measured:
            return [self.equal_cost_cells(None, None)] * len(pairs)
        curves_a, curves_b = curves_of(pairs, seeds)
        wanted = [float((pair.cost_a.mean() + pair.cost_b.mean()) / 2) for pair in pairs]
        costs = common_costs([*curves_a, *curves_b], wanted)
        found = []
        for cost in costs:
            if cost is None:
                found.append(self.equal_cost_cells(None, None))
                continue
            differences = difference_at_equal_cost(curves_a, curves_b, [cost])[:, 0]
            paired = paired_over_seeds(
                differences, np.zeros(len(seeds)), margin=self.margin, higher_is_better=self.higher_is_better
            )
            found.append(self.equal_cost_cells(cost, paired))
        return found

    @staticmethod
    def equal_cost_cells(cost: float | None, found: Difference | None) -> Cells:
        return {
            "equal_cost": None if cost is None else 100 * cost,
            "at_equal_cost": None if found is None else found.interval_95,
            "verdict_equal_cost": None if found is None else found.verdict,
        }


def _by_mode(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    return {mode: [pair for pair in pairs if pair.mode == mode] for mode in dict.fromkeys(pair.mode for pair in pairs)}


def _overall(pairs: Sequence[Pair]) -> tuple[Pair, float | str]:
    """Each seed's and sequence's mean over the targets; of a single target, or of targets with other cells, the first."""
    if len(pairs) < 2 or len({(pair.seeds, pair.sequence_ids) for pair in pairs}) > 1:
        return pairs[0], pairs[0].target
    means = {name: np.mean([getattr(pair, name) for pair in pairs], axis=0) for name in ("a", "b", "cost_a", "cost_b")}
    return replace(pairs[0], target=math.nan, **means), ALL_TARGETS


def _controller_cells(cell: GateCell, full: GateCell | None) -> Cells:
    points = cell.interval("rouge_l")
    step = None if full is None else cell.step_time_against(full)
    return {
        "controller": cell.controller,
        "target": _target(cell.target),
        "mode": None if cell.mode == "none" else cell.mode,
        "seeds": None if cell.seeds == (None,) else len(cell.seeds),
        "layers": cell.mean("layers_run"),
        "cost_percent": 100 * cell.cost,
        "flops_percent": _flops_percent(cell, full, "decode_flops", "decide_flops"),
        "flops_head_percent": _flops_percent(cell, full, "decode_flops", "decide_flops", "head_flops"),
        "rouge_l_points": points,
        "nll": cell.interval("nll"),
        "agreement": cell.interval("agreement"),
        "step_percent": None if step is None else 100 * step,
    }


def _flops_percent(cell: GateCell, full: GateCell | None, *columns: str) -> float | None:
    mine, theirs = cell.flops_per_token(*columns), None if full is None else full.flops_per_token(*columns)
    return 100 * mine / theirs if mine is not None and theirs else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _target(target: float | str | None) -> str | None:
    return target if target is None or isinstance(target, str) else f"{100 * target:g}%"
