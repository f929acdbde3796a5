"""Budget against quality, over the shares of routes that the oracle chooses (arXiv 2410.20022, Figure 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.oracle import OracleCurve
from depthdial.report.kit.labels import between, place_labels
from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    ORANGE,
    PURPLE,
    YELLOW,
    figure_style,
    looks,
    new_figure,
    shortened,
    titled_key,
)
from depthdial.report.study.shares_plot import LABELLED_ROUTES, fill_shares, legend_columns, route_colors
from depthdial.report.study.summary import family_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_NAMES = {
    "rouge_l": "ROUGE-L (F1)",
    "rouge_1": "ROUGE-1 (F1)",
    "rouge_2": "ROUGE-2 (F1)",
    "agreement": "greedy agreement",
    "kl": "KL to the full model (nats)",
    "nll": "NLL of the reference (nats per token)",
}
COST_NAMES = {
    "layer_steps": "Cost, % of the full model's layer-steps",
    "layers": "Cost per sequence: mean layers run",
    "ms": "Cost per sequence: measured ms of decoding",
    "decode_flops": "Cost: mean FLOPs of the layers per sequence",
    "decode_sec": "Cost: mean measured decoding time per sequence (s)",
    "step_sec": "Cost: mean measured time per decoding step (s)",
}


def short_name(metric: str) -> str:
    """A metric's name for a title."""
    return {"kl": "KL", "nll": "NLL", "agreement": "Agreement"}.get(
        metric, METRIC_NAMES.get(metric, metric).partition(" (")[0]
    )


def label_cost(axes: Axes, cost: str, suffix: str = "") -> None:
    """Name the axis of budgets; layer-steps are drawn as shares of the full model's and written as percentages."""
    from matplotlib.ticker import PercentFormatter

    axes.set_xlabel(f"{COST_NAMES.get(cost, f'Cost: mean {cost} per sequence')}{suffix}")
    if cost == LAYER_STEPS:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))


def draw_oracle(curve: OracleCurve) -> Figure:
    """Two panels over one budget axis: quality of the oracle and what it is held against; shares of the routes below."""
    with figure_style():
        figure = new_figure(6.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        colors = route_colors(len(curve.routes))
        _quality(top, curve)
        fill_shares(bottom, curve.routes, curve.budgets, curve.shares, colors)
        _star(top, bottom, curve)
        weighted = ", weighted" if curve.scores.weights is not None else ""
        label_cost(bottom, curve.cost, weighted)
        handles, labels = top.get_legend_handles_labels()
        titled_key(figure, handles, labels, _title(curve), n_columns=3)
        handles, labels = bottom.get_legend_handles_labels()
        columns = legend_columns(labels)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.4, columnspacing=1.4)
        _fixed(top, curve, colors)
    return figure


def star_of(curve: OracleCurve) -> tuple[float, float] | None:
    """(budget, quality) of the star: where the oracle first is as good as the full model."""
    if curve.matches_full_at is None or curve.full_value is None:
        return None
    return curve.matches_full_at, curve.full_value


def _quality(axes: Axes, curve: OracleCurve) -> None:
    if curve.value_interval is not None:
        low, high = curve.value_interval[:, 0], curve.value_interval[:, 1]
        axes.fill_between(curve.budgets, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(curve.budgets, curve.value, color=BLUE, linewidth=2.2, label="oracle", gid="oracle")
    if curve.permuted is not None:
        label = "oracle on shuffled scores (luck)"
        axes.plot(curve.budgets, curve.permuted, color=PURPLE, linestyle=":", linewidth=1.8, label=label)
    # At the fixed routes' own costs too: its corners are there, and the oracle's last budgets may lie far apart.
    at = np.union1d(curve.budgets, [route.cost for route in curve.fixed])
    axes.plot(at, curve.mixture_at(at), color=ORANGE, linestyle="--", label="best mixture of fixed routes")
    order = np.argsort(curve.random_cost, kind="stable")
    label = "oracle's shares at random"
    axes.plot(curve.random_cost[order], curve.random[order], color=GRAY, linestyle="-.", linewidth=1.2, label=label)
    if curve.full_value is not None:
        axes.axhline(curve.full_value, color=BLACK, linewidth=0.8, label="full model")
    by_tokens = ", weighted by tokens" if curve.quality == "tokens" else ""
    axes.set_ylabel(METRIC_NAMES.get(curve.metric, curve.metric) + by_tokens)


def _star(top: Axes, bottom: Axes, curve: OracleCurve) -> None:
    star = star_of(curve)
    if star is None:
        return
    for axes in (top, bottom):
        axes.axvline(star[0], color=BLACK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=4)
    if curve.matches_full_interval is not None:
        top.plot(curve.matches_full_interval, [star[1], star[1]], color=BLACK, linewidth=3, alpha=0.55, zorder=7)
    star_style: dict[str, Any] = {"marker": "*", "markersize": 17, "markerfacecolor": YELLOW, "linestyle": "none"}
    label = "oracle as good as full"
    top.plot(*star, **star_style, markeredgecolor=BLACK, zorder=8, label=label, gid="star")
    bottom.plot(star[0], 94, **star_style, markeredgecolor=BLACK, zorder=8, clip_on=False)


def _fixed(axes: Axes, curve: OracleCurve, colors: list[Any]) -> None:
    styles = looks(list(dict.fromkeys(family_of(route.route) for route in curve.fixed)))
    for route, color in zip(curve.fixed, colors, strict=True):
        if route.low is not None and route.high is not None:
            axes.plot([route.cost, route.cost], [route.low, route.high], color=GRAY, linewidth=1, zorder=4)
        marker = styles[family_of(route.route)].marker
        axes.plot(route.cost, route.value, marker=marker, color=color, markeredgecolor=BLACK, markersize=6, zorder=5)
    if len(curve.fixed) <= LABELLED_ROUTES:
        named = [route for route in curve.fixed if route.route != curve.full_route]
        places = [(route.cost, route.value) for route in named]
        place_labels(axes, places, [shortened(route.route) for route in named], avoid=_drawn(axes, curve))


def _drawn(axes: Axes, curve: OracleCurve) -> list[tuple[float, float]]:
    """Points along everything that a label should not cover."""
    lines = ((curve.budgets, curve.value), (curve.budgets, curve.mixture), (curve.random_cost, curve.random))
    places: list[tuple[float, float]] = []
    for budgets, values in lines:  # evenly, for a long straight stretch has points only at its ends
        evenly = np.linspace(budgets.min(), budgets.max(), 200)
        order = np.argsort(budgets, kind="stable")
        places += zip(evenly.tolist(), np.interp(evenly, budgets[order], values[order]).tolist(), strict=True)
    for route in curve.fixed:
        if route.low is not None and route.high is not None:
            places += between((route.cost, route.low), (route.cost, route.high))
    star = star_of(curve)
    if star is not None:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        places += between((left, star[1]), (right, star[1]), 80) + between((star[0], low), (star[0], high), 40) + [star] * 12
    return [place for place in places if np.isfinite(place).all()]


def _title(curve: OracleCurve) -> str:
    what, star = short_name(curve.metric), star_of(curve)
    if star is None:
        return f"{what} of the best route for each sequence, by budget"
    if curve.cost == "layers" and curve.full_cost:
        where = f"{star[0]:.1f} of {curve.full_cost:g} layers on average ({star[0] / curve.full_cost:.0%})"
    elif curve.cost == LAYER_STEPS:
        where = f"{star[0]:.1%} of its layer-steps"
    else:
        where = f"{star[0] / curve.full_cost:.0%} of the full cost" if curve.full_cost else f"a mean cost of {star[0]:.4g}"
    return f"{what}: the oracle equals the full model at {where}"
