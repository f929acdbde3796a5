"""How close routes stay to the full model, against their cost (arXiv 2410.20022, Figures 1a, 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from depthdial.report.kit.curves import band
from depthdial.report.kit.style import Look, figure_style, headed, keep_to_range, log_heights, looks, new_figure
from depthdial.report.study.summary import RouteRows, family_lines, pooled
from depthdial.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By column the title of its panel and what its axis counts.
_PANELS = {
    "cosine_final": ("final hidden states", "cosine similarity"),
    "cosine_intermediate": ("intermediate hidden states, mean", "cosine similarity"),
    "kl": ("KL divergence (log scale)", "KL (nats per token)"),
    "agreement": ("greedy agreement", "share of tokens"),
}


def draw_similarity(routes: Sequence[RouteRows]) -> Figure:
    """Cosine similarity of the final and of the intermediate hidden states against cost, with 95% bands."""
    told = _finding(routes, "cosine_final")
    plain = "Hidden states: cosine similarity to the full model's"
    title = f"Cosine similarity of the final states{told}" if told else plain
    return _draw(routes, ("cosine_final", "cosine_intermediate"), title)


def draw_fidelity(routes: Sequence[RouteRows]) -> Figure:
    """KL divergence from the full model's predictions (log scale) and greedy agreement, against cost."""
    told = _finding(routes, "agreement")
    title = f"Agreement with the full model{told}" if told else "Predictions: distance from the full model's"
    return _draw(routes, ("kl", "agreement"), title)


def _draw(routes: Sequence[RouteRows], columns: Sequence[str], title: str) -> Figure:
    lines = family_lines(routes)
    styles = looks(lines)
    with figure_style():
        figure = new_figure(3.5)
        panels = figure.subplots(1, len(columns), sharex=True)
        for axes, column in zip(panels, columns, strict=True):
            for family, points in lines.items():
                costs = [100 * group[0].cost for group in points.values()]
                _line(axes, costs, [pooled(group, column) for group in points.values()], styles[family], column == "kl")
            axes.set_title(_PANELS[column][0], fontsize=9)
            axes.set_xlabel("cost (% of the layers run)")
            axes.set_ylabel(_PANELS[column][1])
            if column == "kl":
                log_heights(axes)
            else:
                keep_to_range(axes, column)
        headed(figure, title)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), handlelength=3.2)
    return figure


def _line(axes: Axes, costs: Sequence[float], intervals: Sequence[Interval | None], look: Look, is_log: bool) -> None:
    # Zero, the full model's KL to itself, has no place on a log scale.
    there = [(c, i) for c, i in zip(costs, intervals, strict=True) if i is not None and not (is_log and i.mean <= 0)]
    if there:
        x, mean, low, high = np.array([(cost, i.mean, i.low, i.high) for cost, i in there]).T
        ends = np.stack([np.maximum(low, mean / 10) if is_log else low, high], axis=1)
        band(axes, x, ends, color=look.color, alpha=0.15)
        axes.plot(x, mean, **look.drawn, label=look.label, markeredgewidth=0)


def _finding(routes: Sequence[RouteRows], column: str) -> str:
    """What uniform skipping and early exit reach at half of the layers, where both were measured there."""
    lines, told = family_lines(routes), []
    for family, name in (("uls", "ULS"), ("ee", "early exit")):
        points = lines.get(family, {}).values()  # cheapest first
        nearest = min(points, key=lambda group: abs(group[0].cost - 0.5), default=None)
        if nearest and abs(nearest[0].cost - 0.5) <= 0.05 and (interval := pooled(nearest, column)) is not None:
            told.append(f"{name} {interval.mean:.2f}")
    return f" at half the layers: {', '.join(told)}" if len(told) == 2 else ""
