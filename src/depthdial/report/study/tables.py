"""The tables of a study: what routes cost and keep, similarity, oracles, measured times, layers one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.oracles.costs import LAYER_STEPS, LAYERS, MS
from depthdial.oracles.oracle import OracleCurve
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.kit.tables import Cells, Column, any_size, finished
from depthdial.report.study.summary import HEADLINE_METRICS, RouteRows, full_of, gather, headline_metric
from depthdial.stats.intervals import Interval

COLUMNS = (
    Column("step_ms", "ms per step", 2),
    Column("ttft_ms", "ms to the first token", 2),
    Column("speed", write=lambda value: f"{value:.2f}×"),
    Column("speed_range", "speed, least and greatest"),
    Column("cosine_final", "cosine, final"),
    Column("cosine_pre_norm", "cosine, before the norm"),
    Column("cosine_intermediate", "cosine, intermediate"),
    Column("point", "budget"),
    Column("budget", "mean cost", write=any_size),
    Column("best_fixed", "best fixed route"),
    Column("best_fixed_value", "its value"),
    Column("mixture", "best mixture"),
    Column("random", "shares at random"),
    Column("permuted", "shuffled oracle"),
    Column("by_tokens", "oracle, weighted by tokens"),
    Column("mean_over_sequences", "oracle, mean over sequences"),
    Column("ms", "measured ms per sequence", 2),
    Column("full", "full model"),
    Column("plug_in", "paper's oracle"),
    Column("plug_in_all", "on all samples"),
    Column("kl_alone", "KL when it alone is dropped, nats"),
    Column("dropped", "dropped in round"),
    Column("kl_then", "KL after that round, nats"),
)
SIMILARITY_COSTS = (0.75, 0.5, 0.25)
_HALF_LAYER = 0.5
# What a headline may spend: layers, by decoding steps or by sequences.
_DEPTH_COSTS = (LAYER_STEPS, LAYERS)
# Of a curve's table the points, the columns and what the headline calls them.
_CURVE_LINES = {
    "oracle": (
        ("matches full", "oracle", "★ oracle, as good as full"),
        ("50%", "oracle", "oracle at 50%"),
        ("50%", "mixture", "best mixture at 50%"),
    ),
    "predictable": (
        ("predictable matches full", "predictable", "★ predictable oracle, as good as full"),
        ("50%", "predictable", "predictable oracle at 50%"),
    ),
}
# What a curve's table holds beside it, in the order of a report's.
_BESIDE = {
    "oracle": ("best_fixed", "best_fixed_value", "mixture", "random", "permuted", "full"),
    "predictable": ("plug_in", "plug_in_all", "permuted", "random", "mixture", "full"),
}
# Up to so many routes are listed one by one, more only at SIMILARITY_COSTS.
_LISTED_ROUTES = 12


def headline(
    rows: Any,
    curves: Mapping[str, OracleCurve] | None = None,
    predictable: Mapping[str, PredictableCurve] | None = None,
    timing: Mapping[str, Any] | None = None,
) -> list[Cells]:
    """What each route costs and keeps: a row for each, and the oracles' below them.

    Keys: `route`; `layers` run for a response token; `cost_percent` of the full model's layer-steps (of its layers where
    rows have no answers); the headline metric (`rouge_l`, or `agreement` without references) as an `Interval`; means of
    `agreement`, `kl` (nats) and `nll` (nats per token); `speed`, how many times faster than the full model's steps in the
    same rows (None where batch sizes differ), and `speed_range` over its repeats; `step_ms`, the full model's measured time
    per decoding step divided by the speed (measured alone where there is none). Columns without any number are left out.

    Args:
        curves, predictable: oracles by metric; of those by the headline metric that spend layer-steps (or layers), the
            star (the cheapest budget as good as the full model) and the value at half of the full cost.
        timing: a study's `timing.json`, in place of the rows' own times.
    """
    routes = gather(rows, timing)
    metric, full = headline_metric(routes), full_of(routes)
    table = [_route_cells(route, metric, full) for route in routes]
    if metric is not None:
        for known in (curves or {}, predictable or {}):
            table += [{**dict.fromkeys(table[0]), **cells} for cells in _curve_cells(known.get(metric))]
    return finished(table, COLUMNS, keep=("route", "layers", "cost_percent"))


def similarity_table(rows: Any, costs: Sequence[float] | None = None) -> list[Cells]:
    """Closeness to the full model, with 95% intervals over sequences.

    Args:
        costs: fractions of the layers to report, each at the nearest route of each family that lies within half a
            layer or 5% of the layers; None for every route, or 75%, 50% and 25% where there are more than 12 routes.
    """
    routes = gather(rows)
    if costs is None and len(routes) > _LISTED_ROUTES:
        costs = SIMILARITY_COSTS
    columns = ("cosine_final", "cosine_pre_norm", "cosine_intermediate", "kl", "agreement")
    table = [
        {**_name_and_cost(route, route.cost), **{column: route.interval(column) for column in columns}}
        for route in (routes if costs is None else _near(routes, costs))
    ]
    return finished(table, COLUMNS, keep=("route", "layers", "cost_percent"))


def oracle_table(curve: OracleCurve | PredictableCurve) -> list[Cells]:
    """An oracle and what it is held against, at its stars and at 25, 50 and 75% of the full cost where that can be met."""
    table, name = [], _name(curve)
    for row in (row for row in curve.table() if row[name] is not None):
        point, budget = row["point"], _with_ends(curve, row, "budget")
        star = "★ as good as full" if point == "matches full" else f"★ {point}"
        cells: Cells = {"point": star if "matches" in point else f"{point} of full"}
        cells["budget"] = None if curve.cost == LAYER_STEPS else budget
        cells["cost_percent"] = _spent(budget, row["share_of_full"])
        cells["layers"] = None if curve.cost == LAYERS else row.get("layers")
        cells["ms"] = None if curve.cost == MS else row.get("ms")
        cells[name] = _with_ends(curve, row, name)
        other = "mean_over_sequences" if getattr(curve, "quality", "") == "tokens" else "by_tokens"
        table.append(cells | {beside: row[beside] for beside in _BESIDE[name]} | {other: row.get(other)})
    return finished(table, COLUMNS, keep=("point", "cost_percent", name))


def timing_table(timing: Mapping[str, Any] | None) -> list[Cells]:
    """The entries of `timing.json`, each time as the median with the range over rounds."""

    def spread(entry: Mapping[str, Any], name: str) -> Interval:
        return Interval(entry[name]["median"], entry[name]["low"], entry[name]["high"], entry["n_repeats"])

    entries = sorted((timing or {}).get("routes", ()), key=lambda entry: entry["batch"])
    texts, times = ("route", "layers", "batch"), ("step_ms", "ttft_ms")
    table = [{**{n: entry[n] for n in texts}, **{n: spread(entry, n) for n in times}} for entry in entries]
    return finished(table, COLUMNS)


def importance_table(made_by: Mapping[str, Any]) -> list[Cells]:
    """Layer by layer: the KL of dropping it alone, and in which round the search dropped it."""
    importance, order, kl = (list(made_by.get(name) or []) for name in ("importance", "drop_order", "kl"))
    alone, rounds = dict(enumerate(importance)), {layer: i + 1 for i, layer in enumerate(order)}
    then = dict(zip(order, kl, strict=False))
    table: list[Cells] = [
        {"layer": str(i), "kl_alone": alone.get(i), "dropped": rounds.get(i), "kl_then": then.get(i)}
        for i in range(max([*alone, *order], default=-1) + 1)
    ]
    return finished(table, COLUMNS)


def _route_cells(route: RouteRows, metric: str | None, full: RouteRows | None) -> Cells:
    cells = _name_and_cost(route, route.cost_against(full))
    for name in HEADLINE_METRICS:
        cells[name] = route.interval(name) if name == metric else route.mean(name)
    speed = None if full is None else route.speed_against(full)
    full_ms = full.milliseconds() if full is not None and speed is not None else None
    cells["step_ms"] = route.milliseconds() if speed is None or full_ms is None else full_ms / speed.ratio
    cells["speed"] = None if speed is None else speed.ratio
    cells["speed_range"] = None if speed is None or route is full else speed.range_text
    return cells


def _curve_cells(curve: OracleCurve | PredictableCurve | None) -> list[Cells]:
    if curve is None or curve.cost not in _DEPTH_COSTS:
        return []
    rows, cells = {row["point"]: row for row in curve.table()}, []
    for point, name, label in _CURVE_LINES[_name(curve)]:
        row = rows.get(point, {})
        value = _with_ends(curve, row, name)
        if value is not None:
            budget = _with_ends(curve, row, "budget")
            layers = budget if curve.cost == LAYERS else None if point == "50%" else row.get("layers")
            spent = _spent(budget, row["share_of_full"])
            cells.append({"route": label, "layers": layers, "cost_percent": spent, curve.metric: value})
    return cells


def _name(curve: OracleCurve | PredictableCurve) -> str:
    return "oracle" if isinstance(curve, OracleCurve) else "predictable"


def _with_ends(curve: OracleCurve | PredictableCurve, row: Mapping[str, Any], name: str) -> Interval | float | None:
    """A number of a curve's table as an interval, where the table has its ends."""
    n = len(curve.sequence_ids) if isinstance(curve, OracleCurve) else curve.n_sequences
    mean, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if mean is None or math.isnan(mean):
        return None
    return mean if low is None or high is None or n < 2 else Interval(mean, low, high, n)


def _spent(budget: Interval | float | None, share: float | None) -> Interval | float | None:
    """A budget as a percentage of the full cost, of which it is `share`; with its interval."""
    if not isinstance(budget, Interval) or share is None or not budget.mean:
        return None if share is None else 100 * share
    scale = 100 * share / budget.mean
    return Interval(scale * budget.mean, scale * budget.low, scale * budget.high, budget.n)


def _name_and_cost(route: RouteRows, cost: float) -> Cells:
    layers = int(route.cost_layers) if route.cost_layers.is_integer() else route.cost_layers
    return {"route": route.name, "layers": layers, "cost_percent": 100 * cost}


def _near(routes: Sequence[RouteRows], costs: Sequence[float]) -> list[RouteRows]:
    """For each cost, costliest first, the nearest route of each family, if it is near enough."""
    found: list[RouteRows] = []
    for cost in sorted(costs, reverse=True):
        shallow = sorted((route for route in routes if not route.is_full), key=lambda route: abs(route.cost - cost))
        near = [route for route in shallow if abs(route.cost - cost) <= max(0.05, _HALF_LAYER / route.n_layers) + 1e-9]
        nearest = {route.family: route for route in reversed(near)}
        found += [route for route in routes if nearest.get(route.family) is route and route not in found]
    return found
