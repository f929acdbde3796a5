"""Budget against quality, over the shares of routes that the oracle chooses (arXiv 2410.20022, Figure 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.oracle import OracleCurve
from depthdial.report.kit.curves import (
    METRIC_NAMES,
    draw_fixed,
    fill_shares,
    label_cost,
    legend_columns,
    route_colors,
    short_name,
)
from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    ORANGE,
    PURPLE,
    YELLOW,
    figure_style,
    new_figure,
    titled_key,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        draw_fixed(top, curve.fixed, colors, curve.full_route)
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
