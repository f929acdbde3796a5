"""A controller between the static mixture and the oracles: quality against mean cost, and what is gained at equal cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.control.judge.headroom import NO_GAP, PREDICTABLE, RANDOM, ControllerScore, MethodScore
from depthdial.report.controller.tables import method_label, unit_of
from depthdial.report.kit.curves import METRIC_NAMES, draw_fixed, fill_shares, short_name
from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    figure_style,
    headed,
    new_figure,
    shortened,
    titled_key,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One look for each of the rivals that an evaluation can have: two baselines, two other learners, a third baseline.
_RIVALS: tuple[tuple[str, str, Any], ...] = (
    (PURPLE, "v", ":"),
    (SKY, "D", (0, (6, 1, 1, 1))),
    (YELLOW, "H", (0, (4, 1))),
    (BLACK, "P", (0, (2, 2))),
    (GRAY, "^", (0, (1, 1))),
)
_CALIBRATED_ROUTES, _COLUMNS = 12, 4
# How the legend begins; the rivals follow in their own order.
_FIRST_NAMED = ("controller", "its ", "predictable", "oracle", "static")


def draw_controller(score: ControllerScore) -> Figure:
    """Two panels over mean cost: quality of everything; below, how far each lies above the mixture at its own cost."""
    with figure_style():
        figure = new_figure(7.0)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, 4))
        _quality(top, score)
        _gains(bottom, score)
        named = dict(zip(*top.get_legend_handles_labels()[::-1], strict=True))
        places = {name: i for i, start in enumerate(_FIRST_NAMED) for name in named if name.startswith(start)}
        order = sorted(named, key=lambda name: places.get(name, len(_FIRST_NAMED)))
        titled_key(figure, ([named[name] for name in order], order), _title(score), handlelength=2.8)
        draw_fixed(top, score.fixed)
    return figure


def draw_controller_shares(score: ControllerScore) -> Figure:
    """The share of sequences that the controller sends to each route, by budget (mean over the seeds)."""
    with figure_style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        fill_shares(figure, axes, score.routes, score.budgets, score.shares)
        axes.set_xlabel(f"budget that the price was set for ({unit_of(score)})")
        headed(figure, "Routes that the controller chooses, by budget")
    return figure


def draw_calibration(score: ControllerScore) -> Figure | None:
    """Predicted against measured quality in bins, a panel for each route; None if no route's quality varies."""
    varying = [part for part in score.calibration if part.explained is not None]
    if not varying:
        return None
    at = np.unique(np.linspace(0, len(varying) - 1, min(len(varying), _CALIBRATED_ROUTES)).round().astype(int))
    shown = [varying[i] for i in at]
    n_rows = -(-len(shown) // _COLUMNS)
    ends = [end for part in shown for end in (*part.predicted, *part.low, *part.high) if np.isfinite(end)]
    margin = 0.04 * (max(ends) - min(ends) or 1.0)
    limits = (min(ends) - margin, max(ends) + margin)
    from matplotlib.ticker import MaxNLocator

    with figure_style():
        figure = new_figure(0.8 + 1.75 * n_rows)
        panels = np.atleast_1d(figure.subplots(n_rows, min(_COLUMNS, len(shown)), sharex=True, sharey=True)).ravel()
        for axes, part in zip(panels, shown, strict=False):
            axes.plot(limits, limits, color=GRAY, linewidth=0.8, linestyle="--", zorder=1)
            reach = np.nan_to_num([part.measured - part.low, part.high - part.measured])
            axes.errorbar(part.predicted, part.measured, yerr=reach, color=BLUE, marker="o", markersize=3.5, elinewidth=0.9)
            axes.set_title(shortened(part.route, 20), fontsize=8)
            told = f"explains {100 * (part.explained or 0):z.0f}%".replace("-", "−")
            axes.text(0.04, 0.96, told, transform=axes.transAxes, va="top", fontsize=7)
            axes.set_aspect("equal")
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(shown) - _COLUMNS) : len(shown)]:
            axes.tick_params(labelbottom=True)  # the lowest of its column, whether or not in the last row
        panels[0].set(xlim=limits, ylim=limits)
        for axis in (panels[0].xaxis, panels[0].yaxis):
            axis.set_major_locator(MaxNLocator(4))
        what = METRIC_NAMES.get(score.metric, score.metric)
        figure.supxlabel(f"predicted {what}", fontsize=9)
        figure.supylabel(f"measured {what}", fontsize=9)
        headed(figure, f"{short_name(score.metric)}: what the controller predicts, and what is measured, on test sequences")
    return figure


def _quality(axes: Axes, score: ControllerScore) -> None:
    curves, own = score.curves, score.controller
    axes.plot(curves.costs, curves.oracle, color=GREEN, linestyle=(0, (5, 1)), label="oracle: paid what it chose on")
    if curves.predictable is not None and curves.predictable_intervals is not None:
        low, high = curves.predictable_intervals.T
        axes.fill_between(curves.costs, low, high, color=BLUE, alpha=0.15, linewidth=0)
        label = f"predictable oracle: knows {score.n_known} other answers"
        axes.plot(curves.costs, curves.predictable, color=BLUE, linewidth=1.8, label=label, gid="predictable")
    seeds = axes.plot(own.seed_costs[:, :-1].T, own.seed_values[:, :-1].T, color=VERMILION, linewidth=0.7, alpha=0.45)
    if score.n_seeds > 1:
        seeds[0].set_label(f"its {score.n_seeds} seeds")
    _points(axes, own, own.values, own.intervals, _look(score, own))
    for rival in score.methods[1:]:
        _points(axes, rival, rival.values, None, _look(score, rival))
    axes.plot(curves.costs, curves.mixture, color=ORANGE, linestyle="--", label="static mixture of routes", gid="mixture")
    axes.set_ylabel(METRIC_NAMES.get(score.metric, score.metric))


def _gains(axes: Axes, score: ControllerScore) -> None:
    axes.axhline(0, color=ORANGE, linestyle="--")
    own = score.controller
    for gap in score.gaps:
        color, line = (BLUE, "-") if gap.name == PREDICTABLE else (GREEN, (0, (5, 1)))
        low, high = gap.gap_intervals[:-1].T
        axes.fill_between(own.costs[:-1], low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(own.costs[:-1], gap.gaps[:-1], color=color, linestyle=line, linewidth=1.6, gid=gap.name)
    axes.plot(own.seed_costs[:, :-1].T, own.seed_gains[:, :-1].T, color=VERMILION, linewidth=0.7, alpha=0.6)
    for method in score.methods[::-1]:
        _points(axes, method, method.gains, method.gain_intervals, {**_look(score, method), "label": "_gain"})
    axes.set_ylabel("above the static mixture\nat equal cost")
    axes.set_xlabel(f"cost, overhead included ({unit_of(score)})")


def _points(axes: Axes, method: MethodScore, values: np.ndarray, intervals: np.ndarray | None, look: dict[str, Any]) -> None:
    # The last entry is the mean over the budgets, which has no place on the axis.
    reach = None if intervals is None else np.abs(intervals.T - values)[:, :-1]
    axes.errorbar(method.costs[:-1], values[:-1], yerr=reach, elinewidth=0.9, markeredgecolor=BLACK, **look)


def _look(score: ControllerScore, method: MethodScore) -> dict[str, Any]:
    named = {score.controller.name: (VERMILION, "o", "-"), RANDOM: (GRAY, "x", "-.")}
    rivals = [one.name for one in score.methods if one.name not in named]
    named |= {name: _RIVALS[i % len(_RIVALS)] for i, name in enumerate(rivals)}
    color, marker, line = named[method.name]
    above = {"linewidth": 2.2, "zorder": 7} if method is score.controller else {"linewidth": 1.3}
    look = {"color": color, "marker": marker, "linestyle": line, "markersize": 4.5, **above}
    return {**look, "markeredgewidth": 0.9 if marker == "x" else 0.4, "label": shortened(method_label(method.name), 34)}


def _title(score: ControllerScore) -> str:
    what, gap = short_name(score.metric), score.gaps[-1]  # the oracle's, the wider one, as tables and pages quote it
    if score.quality == "tokens":
        what += " by tokens"
    if np.isnan(gap.closed[-1]):
        return f"{what}: between the static mixture and the {gap.name} there is {NO_GAP}"
    return f"{what} at equal cost: {gap.text()} of the gap to the {gap.name} is closed"
