"""The tables and sentences of a controller's score: every figure at equal cost, with its interval over sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthdial.control.judge.headroom import NO_GAP, ControllerScore, GapScore, MethodScore
from depthdial.control.judge.inputs import ORACLE, PREDICTABLE, RANDOM
from depthdial.guarantee.plan import Certificate
from depthdial.report.kit.curves import METRIC_NAMES
from depthdial.report.kit.tables import Cells, Column, any_size, finished
from depthdial.stats.intervals import Interval

_UNITS = {
    "layer_steps": "shares of the full model's layer-steps",
    "layers": "layers per sequence",
    "layers_run": "layers per sequence",
    "flops": "FLOPs per decoding step",
    "ms": "ms per decoding step",
}
COLUMNS = (
    Column("set_budget", "budget"),
    Column("spent", "mean cost", write=any_size),
    Column("over_mixture", "over the mixture at equal cost"),
    Column("behind", "controller ahead by"),
    Column("closed_predictable", "predictable gap closed, %", 0),
    Column("closed_oracle", "oracle's gap closed, %", 0),
    Column("share_percent", "chosen, % by budget"),
    Column("epsilon", "loses at most"),
    Column("saved", write=any_size),
    Column("unit", "in"),
    Column("layers_saved", "layers saved per sequence"),
    Column("metric", "quality"),
    Column("answer_tokens", "answer, at most"),
    Column("loss_measured", "measured loss"),
)


def unit_of(score: ControllerScore) -> str:
    """What the score's costs are counted in."""
    return _UNITS.get(score.cost, score.cost)


def method_label(name: str) -> str:
    """A method as tables and legends call it."""
    return "random, the controller's shares" if name == RANDOM else name


def controller_table(score: ControllerScore, point: int | None = None) -> list[Cells]:
    """A row for each way of choosing at one of the budgets (-1: the mean over them), or at all of them, one by one.

    `set_budget` is what the prices were set for; `spent`: the mean cost on the test rows with the overhead in it;
    `over_mixture`: the difference from the best static mixture at that cost; `behind`: by how much the controller's is
    greater; `closed_predictable` and `closed_oracle`: per cent of those gaps, or that there is none.
    """
    points = range(len(score.budgets)) if point is None else [point]
    rows = [_cells(score, one, at) for at in points for one in (*score.methods, *score.gaps)]
    return finished(rows, COLUMNS, keep=("method", "spent", "quality", "over_mixture"))


def fixed_table(score: ControllerScore) -> list[Cells]:
    """Each route for every sequence: `route`, `spent`, `quality`, and the controller's `share_percent` of it by budget."""
    rows: list[Cells] = []
    for i, route in enumerate(score.fixed):
        quality = _interval(route.value, (route.low, route.high), score.n_sequences)
        shares = [f"{100 * share:.0f}" for share in score.shares[:, i]]
        rows.append({"route": route.route, "spent": route.cost, "quality": quality, "share_percent": " · ".join(shares)})
    return finished(rows, COLUMNS)


def certificate_table(certificates: Sequence[Certificate]) -> list[Cells]:
    """What is promised for each epsilon that was asked: the setting, and what it saves."""
    rows: list[Cells] = []
    for certificate in certificates:
        plan = certificate.plan
        at = certificate.certified
        saved = _interval(certificate.saving, certificate.saving_interval, certificate.n_rows)
        rows.append(
            {
                "epsilon": f"{plan.epsilon:g}",
                "certainty": "on average" if plan.delta is None else f"{1 - plan.delta:.4g}",
                "setting": certificate.setting or "none but the full model",
                "saved": None if at is None else saved,
                "unit": plan.cost_unit.replace("_", "-"),
                "layers_saved": certificate.provenance.get("layers_saved_per_sequence"),
                "metric": plan.metric,
                "answer_tokens": plan.answer_tokens,
                "loss_measured": None if at is None else certificate.risks[at],
                "rows": certificate.n_rows,
                "test": plan.method.replace("_", " "),
                "plan": certificate.plan_digest,
            }
        )
    return finished(rows, COLUMNS)


def headline(score: ControllerScore) -> list[str]:
    """What the score says, in sentences: the gain at equal cost, the gap closed, the rivals, the controller's own cost."""
    own, n_budgets = score.controller, len(score.budgets)
    quality = METRIC_NAMES.get(score.metric, score.metric) + (", weighted by tokens," if score.quality == "tokens" else "")
    unit = unit_of(score)
    over = f"on average over {n_budgets} budgets" if n_budgets > 1 else f"at a budget of {score.budgets[0]:g} {unit}"
    seeds = f" and {score.n_seeds} seeds" if score.n_seeds > 1 else ""
    apart = _apart(own.gains[-1], own.gain_intervals[-1])
    rivals = [f"{method_label(m.name)} {m.gains[-1]:+z.3f} {_ends(m.gain_intervals[-1])}" for m in score.methods[1:]]
    return [
        f"At the same cost the controller's {quality} is {apart} the best static mixture of routes, {over}{seeds}, on "
        f"{score.n_sequences} test sequences.",
        " ".join(map(_gap_sentence, score.gaps)),
        f"Its rivals gain over the mixture, each at its own cost: {'; '.join(rivals)}.",
        *([f"The controller's own cost counts as spent: {score.overhead:.3g} {unit}."] if score.overhead else []),
    ]


def _gap_sentence(gap: GapScore) -> str:
    if np.isnan(gap.closed[-1]):
        return f"Between the mixture and the {gap.name} there is {NO_GAP}."
    seeds = gap.seed_closed[:, -1]
    is_spread = len(seeds) > 1 and not np.isnan(seeds).any()
    spread = f" (seeds: {seeds.min():.0f} to {seeds.max():.0f}%)" if is_spread else ""
    return f"It closes {gap.text()} of the gap to the {gap.name}{spread}."


def _apart(gain: float, ends: np.ndarray) -> str:
    if ends[0] > 0:
        return f"{gain:.3f} {_ends(ends)} above"
    if ends[1] < 0:
        return f"{-gain:.3f} {_ends(-ends[::-1])} below"
    return f"not told apart from that of (difference {gain:+z.3f} {_ends(ends)})"


def _ends(ends: np.ndarray) -> str:
    return f"[{ends[0]:z.3f}, {ends[1]:z.3f}]"


def _cells(score: ControllerScore, one: MethodScore | GapScore, at: int) -> Cells:
    """A way of choosing at what it spent itself, or an oracle at the controller's cost."""
    n, costs, behind, closed = score.n_sequences, score.controller.costs, None, {}
    if isinstance(one, GapScore):
        over, ends = one.gaps, one.gap_intervals
    else:
        over, ends, costs = one.gains, one.gain_intervals, one.costs
        if one.behind is not None and one.behind_intervals is not None:
            behind = _interval(one.behind[at], one.behind_intervals[at], n)
    if one is score.controller:
        shares = {gap.name: _interval(gap.closed[at], gap.closed_intervals[at], n) for gap in score.gaps}
        closed = {name: NO_GAP if np.isnan(share.mean) else share for name, share in shares.items()}
    return {
        "method": method_label(one.name),
        "set_budget": f"{score.budgets[at]:g}" if at >= 0 else None,
        "spent": float(costs[at]),
        "quality": _interval(one.values[at], one.intervals[at], n),
        "over_mixture": _interval(over[at], ends[at], n),
        "behind": behind,
        "closed_predictable": closed.get(PREDICTABLE),
        "closed_oracle": closed.get(ORACLE),
    }


def _interval(mean: float, ends: Any, n: int) -> Interval:
    low, high = (float("nan") if end is None else float(end) for end in ends)
    return Interval(float(mean), low, high, n)
