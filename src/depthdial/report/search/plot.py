"""What a route search found: how much each layer matters, and how far predictions move as layers are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import (
    BLUE,
    ORANGE,
    VERMILION,
    figure_style,
    headed,
    log_heights,
    means_and_reach,
    new_figure,
)
from depthdial.report.study.summary import RouteRows
from depthdial.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More bars than this side by side leave no room for their numbers at 8 points: the rest go into a panel below.
_BARS_PER_PANEL = 36
_KEPT = "#9a9a9a"


def draw_importance(importance: Sequence[float | None], drop_order: Sequence[int]) -> Figure:
    """KL of dropping each layer alone (log scale), with the round in which the search dropped the layer above its bar."""
    from matplotlib.patches import Patch

    n_layers = len(importance)
    known = {i: float(kl) for i, kl in enumerate(importance) if kl is not None and kl > 0}
    rounds = {layer: i + 1 for i, layer in enumerate(drop_order)}
    n_panels = -(-n_layers // _BARS_PER_PANEL)
    per_panel = -(-n_layers // n_panels)
    with figure_style():
        figure = new_figure(0.9 + 2.2 * n_panels)
        panels = np.atleast_1d(figure.subplots(n_panels, 1, sharey=True))
        floor = min(known.values(), default=1.0) / 2
        for i, axes in enumerate(panels):
            layers = range(i * per_panel, min(n_layers, (i + 1) * per_panel))
            _bars(axes, layers, known, rounds, floor)
            axes.set_xlim(layers[0] - 0.7, layers[0] + per_panel - 0.3)
            axes.set_ylim(floor, 3 * max(known.values(), default=1.0))
            axes.set_ylabel("KL (nats per token)")
        panels[-1].set_xlabel("layer dropped alone (number above a bar: round in which the search dropped it)")
        headed(figure, _importance_title(known))
        dropped = Patch(facecolor=ORANGE, hatch="////", edgecolor="white", label="dropped by the search")
        figure.legend(handles=[dropped, Patch(facecolor=_KEPT, label="kept")], loc="outside lower center", ncols=2)
    return figure


def draw_search(made_by: Mapping[str, Any], n_layers: int, measured: Sequence[RouteRows] = ()) -> Figure:
    """KL of the searched nested routes against layers run: on calibration prompts, and where they were measured since.

    Args:
        measured: rows of the searched routes on other sequences, with a `kl` column.
    """
    from matplotlib.ticker import MaxNLocator

    kl = np.array(made_by["kl"], dtype=float)
    layers = n_layers - np.arange(1, len(kl) + 1)
    with figure_style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        axes.plot(layers, kl, color=BLUE, marker="o", label="calibration prompts, as searched")
        style: dict[str, Any] = {"color": VERMILION, "marker": "s", "linestyle": "none", "capsize": 2.5}
        seen = [(route.cost_layers, route.interval("kl")) for route in measured]
        draw_intervals(axes, seen, **style, label="evaluation sequences, 95% interval")
        log_heights(axes)
        axes.set_xlabel("layers run")
        axes.set_ylabel("KL to the full model (nats per token)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ends = f"KL from {kl[0]:.2g} to {kl[-1]:.2g} nats per token"
        headed(figure, f"Dropping {len(kl)} of {n_layers} layers one by one: {ends}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_intervals(axes: Axes, points: Sequence[tuple[float, Interval | None]], **style: Any) -> None:
    """Means that are there, with their intervals, which on a log scale may not reach 0."""
    known = [(x, replace(i, low=max(i.low, i.mean / 10))) for x, i in points if i is not None and i.mean > 0]
    if known:
        means, reach = means_and_reach([interval for _, interval in known])
        axes.errorbar([x for x, _ in known], means, yerr=reach, **style)


def _bars(axes: Axes, layers: range, known: Mapping[int, float], rounds: Mapping[int, int], floor: float) -> None:
    there = [layer for layer in layers if layer in known]
    colors = [ORANGE if layer in rounds else _KEPT for layer in there]
    hatches = ["////" if layer in rounds else "" for layer in there]
    heights = [known[layer] - floor for layer in there]
    axes.bar(there, heights, bottom=floor, color=colors, hatch=hatches, width=0.75, edgecolor="white", linewidth=0)
    log_heights(axes)
    axes.grid(False, axis="x")
    axes.set_xticks(list(layers), [str(layer) for layer in layers])
    texts = {layer: (str(rounds[layer]), known[layer]) for layer in there if layer in rounds}
    texts |= {layer: ("?", floor) for layer in layers if layer not in known}
    for layer, (text, height) in texts.items():
        axes.annotate(text, (layer, height), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8)


def _importance_title(known: Mapping[int, float]) -> str:
    if not known:
        return "Layer importance"
    least, most = min(known, key=lambda layer: known[layer]), max(known, key=lambda layer: known[layer])
    ends = f"least for layer {least} ({known[least]:.2g}), most for layer {most} ({known[most]:.2g})"
    return f"KL when one layer is dropped: {ends}"
