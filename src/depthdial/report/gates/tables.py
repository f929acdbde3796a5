"""The tables of a gates study: what each controller costs and keeps, and whether one input helps over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from depthdial.report.gates.summary import ROUGE, A, B, GateCell, Pair, pairs_of
from depthdial.report.kit.tables import Cells, Column, finished
from depthdial.stats import equivalence
from depthdial.stats.equivalence import Difference

_NO_EQUAL_COST: Cells = dict.fromkeys(("equal_cost", "at_equal_cost", "verdict_equal_cost"))


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


def controllers_table(cells: Sequence[GateCell]) -> list[Cells]:
    """What each controller costs and keeps: a row for each controller, target and mode (the paper's Figure 1b).

    FLOPs are a token's, of the layers, of the keys and values of skipped tokens and of deciding; ROUGE-L (x 100), NLL (nats
    per token) and agreement are `Interval`s over the seeds, or over sequences where there is one seed; measured seconds are
    of a decoding step, None where batch sizes differ. Columns without any number are left out.
    """
    full = next((cell for cell in cells if cell.controller == "full"), None)
    table = [_controller_cells(cell, full) for cell in cells]
    return finished(table, COLUMNS, keep=("controller", "target", "mode", "seeds", "layers", "cost_percent"))


def differences_table(cells: Sequence[GateCell], metric: str = ROUGE) -> list[Cells]:
    """Whether `A` helps over `B`: a row for each target and mode that has both, and one over all targets of a mode.

    Intervals are Student's t over seeds, the bootstrap's over sequences and over both; p-values are of the two one-sided
    tests; costs are % of the layers. At equal cost: the same over seeds with both curves read at one cost. The row of all
    targets takes each seed's mean over them. Verdicts are not corrected for the number of rows.
    """
    table = []
    for pairs in _by_mode(pairs_of(cells, A, B, metric)):
        table += [{**_cells(pair), **equal} for pair, equal in zip(pairs, _at_equal_cost(pairs), strict=True)]
        whole = _overall(pairs)
        if whole is not pairs[0]:
            table.append({**_cells(whole), **_NO_EQUAL_COST})
    return finished(table, COLUMNS, keep=("target", "mode", "difference", "verdict"))


def controls_table(cells: Sequence[GateCell], metric: str = ROUGE) -> list[Cells]:
    """`A` against every other controller: for each and each mode the last row of `differences_table`, of all targets."""
    names = ("mode", "target", "seeds", "cost_a", "cost_b", "difference", "over_sequences", "two_way", "effect_size")
    table = []
    for other in dict.fromkeys(cell.controller for cell in cells if cell.controller != A):
        for pairs in _by_mode(pairs_of(cells, A, other, metric)):
            found = _cells(_overall(pairs))
            table.append({"controller": other, **{name: found[name] for name in (*names, "verdict", "verdict_two_way")}})
    return finished(table, COLUMNS, keep=("controller", "mode", "target", "difference", "verdict"))


def answer_sentences(cells: Sequence[GateCell], metric: str = ROUGE) -> list[str]:
    """What the data say about `A` over `B`, a sentence for each mode: over all targets where there are several.

    The verdict is that over seeds, for these sequences; that over seeds and sequences together, for others too, follows.
    """
    sentences = []
    decimals, unit = (2, "points") if metric == ROUGE else (3, "")
    for pairs in _by_mode(pairs_of(cells, A, B, metric)):
        pair = _overall(pairs)
        told, both = verdict_sentence(_over_seeds(pair), unit, decimals), _over_sequences(pair).two_way
        together = f" Seeds and sequences together: {both.verdict} ({_interval_text(both, decimals)})." if both else ""
        where = f"target {_target(pair.target)}" if pair is pairs[0] else f"mean of {len(pairs)} targets"
        scope = f"{pair.mode.capitalize()} ({where}, {len(pair.seeds)} seeds, {pair.a.shape[1]} sequences)"
        sentences.append(f"{scope}: {told}.{together}")
    return sentences


def verdict_sentence(found: Difference, unit: str = "", decimals: int = 2) -> str:
    """The verdict with its numbers: "hidden helps: hidden minus fixed is +1.40 points (95% interval +0.61 to +2.19)"."""
    unit = unit and f" {unit}"
    interval = _interval_text(found, decimals) or "no interval, of one value"
    told = f"{A} minus {B} is {_signed(found.mean, decimals)}{unit} ({interval})"
    within = "" if found.margin is None else f"±{found.margin:g}{unit}"
    if found.is_equivalent:
        though = {1: f"; {A} is better, by less than that", -1: f"; {A} is worse, by less than that", 0: ""}[found.direction]
        return f"{found.verdict}: {told}, and its 90% interval lies within {within}{though}"
    if found.direction:
        return f"{A} {found.verdict}: {told}"
    return f"{found.verdict}: {told}, neither shown to differ from 0{within and f', nor shown to lie within {within}'}"


def _interval_text(found: Difference, decimals: int) -> str | None:
    low, high = found.interval_95.low, found.interval_95.high
    return None if math.isnan(low) else f"95% interval {_signed(low, decimals)} to {_signed(high, decimals)}"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


def _over_seeds(pair: Pair) -> Difference:
    return equivalence.paired_over_seeds(pair.a.mean(axis=1), pair.b.mean(axis=1), **pair.judged)


def _over_sequences(pair: Pair) -> Difference:
    return equivalence.paired_over_sequences(pair.a, pair.b, **pair.judged, n_draws=equivalence.N_DRAWS)


def _cells(pair: Pair) -> Cells:
    seeds, sequences = _over_seeds(pair), _over_sequences(pair)
    two_way = sequences.two_way
    return {
        "target": _target(pair.target),
        "mode": pair.mode,
        "seeds": len(pair.seeds),
        "sequences": sequences.interval_95.n,
        "cost_a": 100 * float(pair.cost_a.mean()),
        "cost_b": 100 * float(pair.cost_b.mean()),
        "difference": seeds.interval_95,
        "over_sequences": sequences.interval_95,
        "two_way": two_way and two_way.interval_95,
        **{name: _finite(getattr(seeds, name)) for name in ("effect_size", "p_above", "p_below")},
        "verdict": seeds.verdict,
        "verdict_sequences": sequences.verdict,
        "verdict_two_way": two_way and two_way.verdict,
    }


def _at_equal_cost(pairs: Sequence[Pair]) -> list[Cells]:
    """For each pair the difference where both controllers cost the same, near their mean cost."""
    seeds = [seed for seed in pairs[0].seeds if all(seed in pair.seeds for pair in pairs)]
    measured = all(np.isfinite([*pair.cost_a, *pair.cost_b]).all() for pair in pairs)
    if len(pairs) < 2 or not seeds or not measured:
        return [_NO_EQUAL_COST] * len(pairs)
    a, b = ([[pair.points(seed)[side] for pair in pairs] for seed in seeds] for side in (0, 1))
    found = []
    for cost in equivalence.common_costs([*a, *b], [float(pair.cost_a.mean() + pair.cost_b.mean()) / 2 for pair in pairs]):
        if cost is None:
            found.append(_NO_EQUAL_COST)
            continue
        differences = equivalence.difference_at_equal_cost(a, b, [cost])[:, 0]
        paired = equivalence.paired_over_seeds(differences, np.zeros(len(seeds)), **pairs[0].judged)
        found.append(dict(zip(_NO_EQUAL_COST, (100 * cost, paired.interval_95, paired.verdict), strict=True)))
    return found


def _by_mode(pairs: Sequence[Pair]) -> list[list[Pair]]:
    return [[pair for pair in pairs if pair.mode == mode] for mode in dict.fromkeys(pair.mode for pair in pairs)]


def _overall(pairs: Sequence[Pair]) -> Pair:
    """Each seed's and sequence's mean over the targets; of a single target, or of targets with other cells, the first."""
    if len(pairs) < 2 or len({(pair.seeds, pair.sequence_ids) for pair in pairs}) > 1:
        return pairs[0]
    means = {name: np.mean([getattr(pair, name) for pair in pairs], axis=0) for name in ("a", "b", "cost_a", "cost_b")}
    return replace(pairs[0], target=math.nan, **means)


def _controller_cells(cell: GateCell, full: GateCell | None) -> Cells:
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
        "rouge_l_points": cell.interval(ROUGE),
        "nll": cell.interval("nll"),
        "agreement": cell.interval("agreement"),
        "step_percent": None if step is None else 100 * step,
    }


def _flops_percent(cell: GateCell, full: GateCell | None, *columns: str) -> float | None:
    mine, theirs = cell.flops_per_token(*columns), None if full is None else full.flops_per_token(*columns)
    return 100 * mine / theirs if mine is not None and theirs else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _target(target: float | None) -> str | None:
    """As it is written; NaN stands for all of them."""
    return target if target is None else "all" if math.isnan(target) else f"{100 * target:g}%"
