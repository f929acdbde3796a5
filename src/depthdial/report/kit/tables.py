"""The tables of a report, as lists of dictionaries with equal keys, and how their cells are written.

A cell is a text, a number, None, or an `Interval` (which prints as `mean [low, high]`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.oracles.costs import LAYER_STEPS, LAYERS, MS
from depthdial.oracles.oracle import OracleCurve
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.study.summary import RouteRows, full_of, gather, headline_metric
from depthdial.rows.store import PROVENANCE_COLUMNS
from depthdial.stats.intervals import Interval

COLUMN_LABELS = {
    "route": "route",
    "family": "family",
    "layers": "layers run",
    "cost_percent": "cost, %",
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "agreement": "agreement",
    "kl": "KL, nats",
    "nll": "NLL, nats",
    "step_ms": "ms per step",
    "speed": "speed",
    "cosine_final": "cosine, final",
    "cosine_pre_norm": "cosine, before the norm",
    "cosine_intermediate": "cosine, intermediate",
    "point": "budget",
    "budget": "mean cost",
    "oracle": "oracle",
    "best_fixed": "best fixed route",
    "best_fixed_value": "its value",
    "mixture": "best mixture",
    "random": "shares at random",
    "permuted": "shuffled oracle",
    "by_tokens": "oracle, weighted by tokens",
    "mean_over_sequences": "oracle, mean over sequences",
    "ms": "measured ms per sequence",
    "full": "full model",
    "predictable": "predictable",
    "plug_in": "paper's oracle",
    "plug_in_all": "on all samples",
    "layer": "layer",
    "kl_alone": "KL when it alone is dropped, nats",
    "dropped": "dropped in round",
    "kl_then": "KL after that round, nats",
    "controller": "controller",
    "target": "target",
    "mode": "mode",
    "seeds": "seeds",
    "sequences": "sequences",
    "flops_percent": "FLOPs, %",
    "flops_head_percent": "FLOPs with head, %",
    "rouge_l_points": "ROUGE-L, points",
    "step_percent": "measured s per step, %",
    "cost_a": "cost of the first, %",
    "cost_b": "cost of the second, %",
    "difference": "difference, over seeds",
    "over_sequences": "over sequences",
    "two_way": "over both",
    "effect_size": "d_z over seeds",
    "p_above": "p, above −margin",
    "p_below": "p, below +margin",
    "verdict": "verdict, over seeds",
    "verdict_sequences": "verdict, over sequences",
    "verdict_two_way": "verdict, over both",
    "equal_cost": "equal cost, %",
    "at_equal_cost": "difference at equal cost",
    "verdict_equal_cost": "verdict at equal cost",
    "method": "method",
    "kl_share": "KL, % of ULS's",
    "kl_more": "KL above the first's, nats",
    "search_sec": "search, s",
    "passes": "passes",
    "skipped": "layers skipped",
    "set_budget": "budget",
    "spent": "mean cost",
    "quality": "quality",
    "over_mixture": "over the mixture at equal cost",
    "behind": "controller ahead by",
    "closed_predictable": "predictable gap closed, %",
    "closed_oracle": "oracle's gap closed, %",
    "share_percent": "chosen, % by budget",
    "epsilon": "loses at most",
    "certainty": "certainty",
    "setting": "setting",
    "saved": "saved",
    "unit": "in",
    "layers_saved": "layers saved per sequence",
    "metric": "quality",
    "answer_tokens": "answer, at most",
    "loss_measured": "measured loss",
    "rows": "rows",
    "test": "test",
    "plan": "plan",
}
SIMILARITY_COSTS = (0.75, 0.5, 0.25)
_HALF_LAYER = 0.5
# What a headline may spend: layers, by decoding steps or by sequences.
_DEPTH_COSTS = (LAYER_STEPS, LAYERS)
_DECIMALS = {
    **dict.fromkeys(("cost_percent", "flops_percent", "flops_head_percent", "step_percent"), 1),
    **dict.fromkeys(("cost_a", "cost_b", "equal_cost", "kl_share"), 1),
    "search_sec": 0,
    **dict.fromkeys(("step_ms", "ms", "layers", "budget", "rouge_l_points", "effect_size"), 2),
    **dict.fromkeys(("spent", "saved"), 2),
    **dict.fromkeys(("closed_predictable", "closed_oracle"), 0),
}
# Up to so many routes are listed one by one, more only at SIMILARITY_COSTS.
_LISTED_ROUTES = 12

Cells = dict[str, Any]


def headline(
    rows: Any,
    curves: OracleCurve | Mapping[str, OracleCurve] | None = None,
    predictable: Mapping[str, PredictableCurve] | None = None,
) -> list[Cells]:
    """What each route costs and keeps: a row for each, and the oracle's below them.

    Keys: `route`; `layers` run for a response token; `cost_percent` of the full model's
    layer-steps (of its layers where rows have no answers); the headline metric
    (`rouge_l`, or `agreement` without references) as an `Interval`; means of `agreement`, `kl` (nats) and `nll` (nats
    per token); `step_ms`, measured per decoding step; `speed`, how many times faster than the full model's steps in the
    same rows (None where batch sizes differ). Columns without any number are left out.

    Args:
        rows: what `sweep` returned (a pyarrow.Table, a pandas.DataFrame or a dict of arrays).
        curves: the oracle by layer-steps, or oracles by metric; the one by the headline metric adds the star (the
            cheapest budget as good as the full model) and the oracle and the best mixture at half of the full cost.
        predictable: predictable oracles by metric; adds its star and its value at half of the full cost.

    Raises:
        InputError: if there are no rows or they are no sweep's.
    """
    routes = gather(rows)
    metric, full = headline_metric(routes), full_of(routes)
    table = [_route_cells(route, metric, full) for route in routes]
    curve = headline_curve(curves, metric)
    if curve is not None and metric is not None:
        table += [{**dict.fromkeys(table[0]), **cells} for cells in _oracle_cells(curve, metric)]
    honest = (predictable or {}).get(metric or "")
    if honest is not None and metric is not None:
        table += [{**dict.fromkeys(table[0]), **cells} for cells in _predictable_cells(honest, metric)]
    return without_empty_columns(table, keep=("route", "layers", "cost_percent"))


def headline_curve(curves: OracleCurve | Mapping[str, OracleCurve] | None, metric: str | None) -> OracleCurve | None:
    """The curve that spends layer-steps (or layers) and is best by `metric`, if it is among them."""
    curve = curves if isinstance(curves, OracleCurve) else (curves or {}).get(metric or "")
    return curve if curve is not None and curve.cost in _DEPTH_COSTS and curve.metric == metric else None


def similarity_table(rows: Any, costs: Sequence[float] | None = None) -> list[Cells]:
    """Closeness to the full model, with 95% intervals over sequences.

    Args:
        rows: what `similarity` returned.
        costs: fractions of the layers to report, each at the nearest route of each family that lies within half a
            layer or 5% of the layers; None for every route, or 75%, 50% and 25% where there are more than 12 routes.

    Raises:
        InputError: if there are no rows or they are no similarity run's.
    """
    routes = gather(rows)
    if costs is None and len(routes) > _LISTED_ROUTES:
        costs = SIMILARITY_COSTS
    if costs is not None:
        routes = _near(routes, costs)
    table = []
    for route in routes:
        cells: Cells = {"route": route.name, "layers": _number_of_layers(route), "cost_percent": 100 * route.cost}
        for column in ("cosine_final", "cosine_pre_norm", "cosine_intermediate", "kl", "agreement"):
            cells[column] = route.interval(column)
        table.append(cells)
    return without_empty_columns(table, keep=("route", "layers", "cost_percent"))


def oracle_table(curve: OracleCurve) -> list[Cells]:
    """The oracle, and what it is held against, at the star and at 25, 50 and 75% of the full cost where that can be met."""
    table, other = [], "mean_over_sequences" if curve.quality == "tokens" else "by_tokens"
    for row in (row for row in curve.table() if row["oracle"] is not None):
        star, n = row["point"] == "matches full", len(curve.sequence_ids)
        budget = _interval(row["budget"], row["budget_low"], row["budget_high"], n)
        table.append(
            {
                "point": "★ as good as full" if star else f"{row['point']} of full",
                "budget": None if curve.cost == LAYER_STEPS else budget,
                "cost_percent": _spent(budget, row["share_of_full"]),
                "layers": None if curve.cost == LAYERS else row["layers"],
                "ms": None if curve.cost == MS else row["ms"],
                "oracle": _interval(row["oracle"], row["oracle_low"], row["oracle_high"], n),
                "best_fixed": row["best_fixed"],
                **{name: row[name] for name in ("best_fixed_value", "mixture", "random", "permuted", "full")},
                **{other: row[other]},
            }
        )
    return without_empty_columns(table, keep=("point", "cost_percent", "oracle"))


def predictable_table(curve: PredictableCurve) -> list[Cells]:
    """The predictable oracle and what it is held against, at the stars and at 25, 50 and 75% of the full cost."""
    table = []
    for row in curve.table():
        budget = _interval(row["budget"], row["budget_low"], row["budget_high"], curve.n_sequences)
        table.append(
            {
                "point": f"★ {row['point']}" if "matches" in row["point"] else f"{row['point']} of full",
                "budget": None if curve.cost == LAYER_STEPS else budget,
                "cost_percent": _spent(budget, row["share_of_full"]),
                "predictable": _predicted(row, curve),
                **{name: row[name] for name in ("plug_in", "plug_in_all", "permuted", "random", "mixture", "full")},
            }
        )
    return without_empty_columns(table, keep=("point", "cost_percent", "predictable"))


def importance_table(made_by: Mapping[str, Any]) -> list[Cells]:
    """Layer by layer: the KL of dropping it alone, and in which round the search dropped it."""
    importance, order, kl = (list(made_by.get(name) or []) for name in ("importance", "drop_order", "kl"))
    n_layers = max(len(importance), max(order, default=-1) + 1)
    rounds = {layer: i for i, layer in enumerate(order)}
    return [
        {
            "layer": str(layer),
            "kl_alone": importance[layer] if layer < len(importance) else None,
            "dropped": rounds[layer] + 1 if layer in rounds else None,
            "kl_then": kl[rounds[layer]] if layer in rounds and rounds[layer] < len(kl) else None,
        }
        for layer in range(n_layers)
    ]


def provenance_table(rows: Any) -> list[tuple[str, str]]:
    """Where the rows come from: (name, value) for each provenance column, with every value that it takes."""
    names = list(rows.column_names if hasattr(rows, "column_names") else rows.keys())
    table = []
    for name in PROVENANCE_COLUMNS:
        if name in names:
            values = sorted({str(value) for value in _as_list(rows[name]) if value not in (None, "")})
            table.append((name.replace("_", " "), "; ".join(values) or "not recorded"))
    return table


def settings_table(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A flat view of nested settings: (name, value), nested names joined by a dot; long lists by their length."""
    table: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            table += [(f"{name}.{inner}", text) for inner, text in settings_table(value)]
        elif isinstance(value, list | tuple) and len(value) > 40:
            table.append((name, f"{len(value)} entries"))
        elif isinstance(value, list | tuple):
            table.append((name, ", ".join(_plain(item) for item in value) or "none"))
        else:
            table.append((name, _plain(value)))
    return table


def cell_text(column: str, value: Any) -> str:
    """A cell as it is printed: fixed decimals by column, intervals in brackets, a dash for what is not there."""
    return " ".join(part for part in cell_parts(column, value) if part)


def cell_parts(column: str, value: Any) -> tuple[str, str]:
    """The same in two parts: the value and its interval, which is empty for what has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–", ""
    if isinstance(value, str | bool | int):
        return str(value), ""
    if isinstance(value, Interval):
        low, high = _number(column, value.low), _number(column, value.high)
        return _number(column, value.mean), "" if math.isnan(value.low) else f"[{low}, {high}]"
    return (f"{value:.2f}×", "") if column == "speed" else (_number(column, value), "")


def _number(column: str, value: float) -> str:
    if column in ("budget", "spent", "saved") and value and not 1 <= abs(value) < 10_000:
        return f"{value:.4g}"  # of FLOPs or seconds, two decimals are far too many or too few
    if column in ("p_above", "p_below") and value < 0.001:
        return "< 0.001"
    return f"{value:z.{_DECIMALS.get(column, 3)}f}"


def _route_cells(route: RouteRows, metric: str | None, full: RouteRows | None) -> Cells:
    cost = 100 * route.cost_against(full)
    cells: Cells = {"route": route.name, "layers": _number_of_layers(route), "cost_percent": cost}
    for name in ("rouge_l", "agreement", "kl", "nll"):
        cells[name] = route.interval(name) if name == metric else route.mean(name)
    cells["step_ms"] = route.step_ms
    cells["speed"] = None if full is None else route.speed_against(full)
    return cells


def _oracle_cells(curve: OracleCurve, metric: str) -> list[Cells]:
    table = {row["point"]: row for row in curve.table()}
    star, half, n = table.get("matches full"), table.get("50%"), len(curve.sequence_ids)
    cells: list[Cells] = []
    if star is not None:
        budget = _interval(star["budget"], star["budget_low"], star["budget_high"], n)
        layers = budget if curve.cost == LAYERS else star["layers"]
        value = _interval(star["oracle"], star["oracle_low"], star["oracle_high"], n)
        cells.append(
            {
                "route": "★ oracle, as good as full",
                "layers": layers,
                "cost_percent": _spent(budget, star["share_of_full"]),
                metric: value,
            }
        )
    if half is not None and half["oracle"] is not None:
        where: Cells = {
            "layers": half["budget"] if curve.cost == LAYERS else None,
            "cost_percent": _percent(half["share_of_full"]),
        }
        value = _interval(half["oracle"], half["oracle_low"], half["oracle_high"], n)
        cells.append({"route": "oracle at 50%", **where, metric: value})
        if half["mixture"] is not None and not math.isnan(half["mixture"]):
            cells.append({"route": "best mixture at 50%", **where, metric: half["mixture"]})
    return cells


def _predictable_cells(curve: PredictableCurve, metric: str) -> list[Cells]:
    if curve.cost not in _DEPTH_COSTS or curve.metric != metric:
        return []
    names = {"predictable matches full": "★ predictable oracle, as good as full", "50%": "predictable oracle at 50%"}
    return [
        {
            "route": names[row["point"]],
            "layers": budget if curve.cost == LAYERS else None,
            "cost_percent": _spent(budget, row["share_of_full"]),
            metric: _predicted(row, curve),
        }
        for row in curve.table()
        if row["point"] in names
        for budget in [_interval(row["budget"], row["budget_low"], row["budget_high"], curve.n_sequences)]
    ]


def _predicted(row: Mapping[str, Any], curve: PredictableCurve) -> Interval | float | None:
    return _interval(row["predictable"], row["predictable_low"], row["predictable_high"], curve.n_sequences)


def _interval(mean: float | None, low: float | None, high: float | None, n: int) -> Interval | float | None:
    return mean if mean is None or low is None or high is None or n < 2 else Interval(mean, low, high, n)


def _spent(budget: Interval | float | None, share: float | None) -> Interval | float | None:
    """A budget as a percentage of the full cost, of which it is `share`; with its interval."""
    if not isinstance(budget, Interval) or share is None or not budget.mean:
        return _percent(share)
    scale = 100 * share / budget.mean
    return Interval(scale * budget.mean, scale * budget.low, scale * budget.high, budget.n)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number_of_layers(route: RouteRows) -> int | float:
    return int(route.cost_layers) if float(route.cost_layers).is_integer() else route.cost_layers


def _near(routes: Sequence[RouteRows], costs: Sequence[float]) -> list[RouteRows]:
    """For each cost, costliest first, the nearest route of each family, if it is near enough."""
    found: list[RouteRows] = []
    for cost in sorted(costs, reverse=True):
        nearest: dict[str, RouteRows] = {}
        for route in (route for route in routes if not route.is_full):
            distance = abs(route.cost - cost)
            is_near = distance <= max(0.05, _HALF_LAYER / route.n_layers) + 1e-9
            if is_near and (route.family not in nearest or distance < abs(nearest[route.family].cost - cost)):
                nearest[route.family] = route
        found += [route for route in nearest.values() if route not in found]
    return found


def without_empty_columns(table: list[Cells], keep: Sequence[str]) -> list[Cells]:
    """A table without the columns in which no row has anything, but for those to `keep`."""
    columns = [name for name in (table[0] if table else ()) if name in keep or any(row[name] is not None for row in table)]
    return [{name: row[name] for name in columns} for row in table]


def _as_list(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
