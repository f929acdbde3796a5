"""The tables and sentences of a controller's score: every figure at equal cost, with its interval over sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthdial.control.judge.headroom import NO_GAP, ControllerScore, GapScore, MethodScore
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
_LABELS = {"random": "random, the controller's shares"}


def unit_of(score: ControllerScore) -> str:
    """What the score's costs are counted in."""
    return _UNITS.get(score.cost, score.cost)


def method_label(name: str) -> str:
    """A method as tables and legends call it."""
    return _LABELS.get(name, name)


def controller_table(score: ControllerScore, point: int | None = None) -> list[Cells]:
    """A row for each way of choosing at one of the budgets (-1: the mean over them), or at all of them, one by one.

    Keys: `method`; `set_budget`, which the prices were set for; `spent`, the mean cost on the test rows with the overhead in
    it; `quality`; `over_mixture`, its difference from the best static mixture at that cost; `behind`, by how much the
    controller's is greater; `closed_predictable` and `closed_oracle`, per cent of those gaps, or that there is none.
    """
    points = range(len(score.budgets)) if point is None else [point]
    rows: list[Cells] = []
    for at in points:
        budget = f"{score.budgets[at]:g}" if at >= 0 else None
        rows += [
            {"method": method_label(m.name), "set_budget": budget, **_method_cells(score, m, at)} for m in score.methods
        ]
        rows += [{"method": gap.name, "set_budget": budget, **_oracle_cells(score, gap, at)} for gap in score.gaps]
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
        saved = certificate.saving if certificate.certified is not None else None
        rows.append(
            {
                "epsilon": f"{plan.epsilon:g}",
                "certainty": "on average" if plan.delta is None else f"{1 - plan.delta:.4g}",
                "setting": certificate.setting or "none but the full model",
                "saved": saved if saved is None else _interval(saved, certificate.saving_interval, certificate.n_rows),
                "unit": plan.cost_unit.replace("_", "-"),
                "layers_saved": certificate.provenance.get("layers_saved_per_sequence"),
                "metric": plan.metric,
                "answer_tokens": plan.answer_tokens,
                "loss_measured": None if certificate.certified is None else certificate.risks[certificate.certified],
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
    over = (
        f"on average over {n_budgets} budgets" if n_budgets > 1 else f"at a budget of {score.budgets[0]:g} {unit_of(score)}"
    )
    seeds = f" and {score.n_seeds} seeds" if score.n_seeds > 1 else ""
    apart = _apart(own.gains[-1], own.gain_intervals[-1])
    told = [
        f"At the same cost the controller's {quality} is {apart} the best static mixture of routes, {over}{seeds}, on "
        f"{score.n_sequences} test sequences."
    ]
    told.append(" ".join(_gap_sentence(gap) for gap in score.gaps))
    rivals = [f"{method_label(m.name)} {m.gains[-1]:+z.3f} {_ends(m.gain_intervals[-1])}" for m in score.methods[1:]]
    told.append(f"Its rivals gain over the mixture, each at its own cost: {'; '.join(rivals)}.")
    if score.overhead:
        told.append(f"The controller's own cost counts as spent: {score.overhead:.3g} {unit_of(score)}.")
    return told


def _gap_sentence(gap: GapScore) -> str:
    if np.isnan(gap.closed[-1]):
        return f"Between the mixture and the {gap.name} there is {NO_GAP}."
    text = f"It closes {gap.text()} of the gap to the {gap.name}"
    seeds = gap.seed_closed[:, -1]
    if len(seeds) < 2 or np.isnan(seeds).any():
        return f"{text}."
    return f"{text} (seeds: {seeds.min():.0f} to {seeds.max():.0f}%)."


def _apart(gain: float, ends: np.ndarray) -> str:
    if ends[0] > 0:
        return f"{gain:.3f} {_ends(ends)} above"
    if ends[1] < 0:
        return f"{-gain:.3f} {_ends(-ends[::-1])} below"
    return f"not told apart from that of (difference {gain:+z.3f} {_ends(ends)})"


def _ends(ends: np.ndarray) -> str:
    return f"[{ends[0]:z.3f}, {ends[1]:z.3f}]"


def _method_cells(score: ControllerScore, method: MethodScore, at: int) -> Cells:
    n, behind = score.n_sequences, None
    if method.behind is not None and method.behind_intervals is not None:
        behind = _interval(method.behind[at], method.behind_intervals[at], n)
    closed = dict.fromkeys(("closed_predictable", "closed_oracle"), None)
    if method is score.controller:
        closed = {f"closed_{gap.name.split()[0]}": _closed(gap, at, n) for gap in score.gaps}
    return {
        "spent": float(method.costs[at]),
        "quality": _interval(method.values[at], method.intervals[at], n),
        "over_mixture": _interval(method.gains[at], method.gain_intervals[at], n),
        "behind": behind,
        **{name: closed.get(name) for name in ("closed_predictable", "closed_oracle")},
    }


def _oracle_cells(score: ControllerScore, gap: GapScore, at: int) -> Cells:
    return {
        "spent": float(score.controller.costs[at]),
        "quality": _interval(gap.values[at], gap.intervals[at], score.n_sequences),
        "over_mixture": _interval(gap.gaps[at], gap.gap_intervals[at], score.n_sequences),
        **dict.fromkeys(("behind", "closed_predictable", "closed_oracle"), None),
    }


def _closed(gap: GapScore, at: int, n: int) -> Interval | str:
    return NO_GAP if np.isnan(gap.closed[at]) else _interval(gap.closed[at], gap.closed_intervals[at], n)


def _interval(mean: float, ends: Any, n: int) -> Interval:
    low, high = (float("nan") if end is None else float(end) for end in ends)
    return Interval(float(mean), low, high, n)
