"""Budget against quality, over the shares of routes that the oracle chooses (arXiv 2410.20022, Figure 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.oracle import OracleCurve
from depthdial.report.kit.curves import METRIC_NAMES, band, draw_fixed, fill_shares, label_cost, short_name, star
from depthdial.report.kit.style import BLACK, BLUE, GRAY, ORANGE, PURPLE, figure_style, new_figure, titled_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_oracle(curve: OracleCurve) -> Figure:
    """Two panels over one budget axis: quality of the oracle and what it is held against; shares of the routes below."""
    with figure_style():
        figure = new_figure(6.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _quality(top, curve)
        _star(top, bottom, curve)
        titled_key(figure, top.get_legend_handles_labels(), _title(curve), ncols=3, markerscale=0.7)
        fill_shares(figure, bottom, curve.routes, curve.budgets, curve.shares)
        label_cost(bottom, curve.cost, ", weighted" if curve.scores.weights is not None else "")
        draw_fixed(top, curve.fixed, curve.full_route, is_colored=True)
    return figure


def _quality(axes: Axes, curve: OracleCurve) -> None:
    band(axes, curve.budgets, curve.value_interval)
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
    at, value = curve.matches_full_at, curve.full_value
    if at is None or value is None:
        return
    for axes in (top, bottom):
        axes.axvline(at, color=BLACK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=4)
    star(top, at, value, "oracle as good as full", curve.matches_full_interval)
    star(bottom, at, 94, None, gid=None, clip_on=False)


def _title(curve: OracleCurve) -> str:
    what, at = short_name(curve.metric), curve.matches_full_at
    if at is None:
        return f"{what} of the best route for each sequence, by budget"
    if curve.cost == "layers" and curve.full_cost:
        where = f"{at:.1f} of {curve.full_cost:g} layers on average ({at / curve.full_cost:.0%})"
    elif curve.cost == LAYER_STEPS:
        where = f"{at:.1%} of its layer-steps"
    else:
        where = f"{at / curve.full_cost:.0%} of the full cost" if curve.full_cost else f"a mean cost of {at:.4g}"
    return f"{what}: the oracle equals the full model at {where}"
