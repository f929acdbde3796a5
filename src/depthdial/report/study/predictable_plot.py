"""The oracle between luck and knowledge: quality against the budget, and how both bounds close in with more samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.oracles.costs import LAYER_STEPS, LAYERS
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.kit.curves import METRIC_NAMES, band, draw_fixed, label_cost, short_name, star
from depthdial.report.kit.style import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, figure_style, new_figure, titled_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_predictable(curve: PredictableCurve) -> Figure:
    """Two panels: mean quality within each budget; at one budget, the bounds against the number of samples chosen on."""
    with figure_style():
        figure = new_figure(6.6)
        top, bottom = figure.subplots(2, 1, height_ratios=(5, 3))
        _by_budget(top, curve)
        _by_samples(bottom, curve)
        titled_key(figure, top.get_legend_handles_labels(), _title(curve), markerscale=0.7)
        draw_fixed(top, curve.fixed, curve.full_route)
    return figure


def shown_budget(curve: PredictableCurve) -> float:
    """The budget of the lower panel: the predictable star, or half of the full cost, or the middle where both fail."""
    if curve.matches_full_at is not None:
        return curve.matches_full_at
    if curve.full_cost is not None and curve.full_cost / 2 >= curve.budgets[0]:
        return curve.full_cost / 2
    return float((curve.budgets[0] + curve.budgets[-1]) / 2)


def budget_text(curve: PredictableCurve, budget: float) -> str:
    """A budget in words: layers, or a percentage of the full model's cost."""
    if curve.cost == LAYERS:
        return f"{budget:.3g} layers"
    return f"{budget:.0%} of the cost" if curve.cost == LAYER_STEPS else f"{budget:.3g}"


def _by_budget(axes: Axes, curve: PredictableCurve) -> None:
    band(axes, curve.budgets, curve.predictable_interval)
    luck = {"color": GREEN, "linewidth": 1.6, "linestyle": (0, (5, 1))}
    axes.plot(curve.budgets, curve.plug_in[0], **luck, label="paper's oracle: paid the one sample that it chose on")
    fainter: dict[str, Any] = {"color": SKY, "linewidth": 1.4, "linestyle": (0, (3, 1, 1, 1))}
    axes.plot(curve.budgets, curve.plug_in[-1], **fainter, label=f"the same with all {curve.n_samples} samples")
    n = curve.chosen_on[-1]
    label = f"predictable: chosen on {n} sample{'s' * (n > 1)}, paid the others"
    axes.plot(curve.budgets, curve.predictable[-1], color=BLUE, linewidth=2.2, label=label, gid="predictable")
    if curve.permuted is not None:
        label = "predictable, of shuffled cells"
        axes.plot(curve.budgets, curve.permuted, color=PURPLE, linestyle=":", linewidth=1.8, label=label)
    axes.plot(curve.budgets, curve.mixture, color=ORANGE, linestyle="--", label="best static mixture of routes")
    if curve.full_value is not None:
        axes.axhline(curve.full_value, color=BLACK, linewidth=0.8, label="full model")
    _stars(axes, curve)
    axes.set_ylabel(METRIC_NAMES.get(curve.metric, curve.metric))
    label_cost(axes, curve.cost)


def _stars(axes: Axes, curve: PredictableCurve) -> None:
    paper, at, ends = curve.plug_in_matches_full_at[0], curve.matches_full_at, curve.matches_full_interval
    if curve.full_value is None:
        return
    if paper is not None:
        look = {"markersize": 12, "markerfacecolor": "white", "gid": None}
        star(axes, paper, curve.full_value, "paper's oracle as good as full", **look)
    if at is not None:
        low, high = ends or (None, None)
        reach = None if low is None else (low, float(curve.budgets[-1]) if high is None else high)
        star(axes, at, curve.full_value, "predictable oracle as good as full", reach)


def _by_samples(axes: Axes, curve: PredictableCurve) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    budget = shown_budget(curve)

    def at_budget(values: np.ndarray) -> float:
        return float(np.interp(budget, curve.budgets, values))

    plug_in, predictable = (list(map(at_budget, curves)) for curves in (curve.plug_in, curve.predictable))
    between = np.column_stack([predictable, plug_in[: len(predictable)]])
    band(axes, curve.chosen_on, between, color=GRAY, alpha=0.15, zorder=0)
    axes.plot(curve.plugged_in, plug_in, color=GREEN, marker="v", linestyle=(0, (5, 1)))
    axes.plot(curve.chosen_on, predictable, color=BLUE, marker="^", linewidth=2.2)
    if curve.predictable_interval is not None:
        axes.plot(2 * [curve.chosen_on[-1]], list(map(at_budget, curve.predictable_interval.T)), color=BLUE, linewidth=1)
    if np.isfinite(at_budget(curve.mixture)):
        axes.axhline(at_budget(curve.mixture), color=ORANGE, linestyle="--", zorder=1)
    if curve.full_value is not None:
        axes.axhline(curve.full_value, color=BLACK, linewidth=0.8, zorder=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(curve.plugged_in)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("samples of each answer that were chosen on")
    axes.set_ylabel(f"{short_name(curve.metric)} at {budget_text(curve, budget)}")
    # On white, for the lines of the mixture and of the full model run through here.
    backed = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
    at: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "bbox": backed}
    axes.annotate("paid the samples chosen on", (curve.plugged_in[-1], plug_in[-1]), color=GREEN, **at)
    # Lower, for at the star of the predictable oracle the point lies on the line of the full model.
    axes.annotate("paid the others", (curve.chosen_on[-1], predictable[-1]), color=BLUE, **{**at, "xytext": (8, -9)})
    axes.set_xlim(0.92, curve.plugged_in[-1] ** 1.45)  # a fixed share of the width is left to the names


def _title(curve: PredictableCurve) -> str:
    what = short_name(curve.metric)
    at, luck, full = curve.matches_full_at, curve.plug_in_matches_full_at[0], curve.full_cost
    if full is None:
        return f"{what}: what is predictable of the oracle's gain, by budget"
    unit = {LAYERS: f"of {full:g} layers", LAYER_STEPS: "of the layer-steps"}.get(curve.cost, "of the full cost")

    def told(budget: float) -> str:
        return f"{budget:.1f}" if curve.cost == LAYERS else f"{budget / full:.0%}"

    if at is None:
        return f"{what}: what is predictable of the oracle's gain does not reach the full model"
    paper = "" if luck is None else f"; the paper's oracle claims {told(luck)}"
    return f"{what}: the predictable oracle equals the full model at {told(at)} {unit}{paper}"
