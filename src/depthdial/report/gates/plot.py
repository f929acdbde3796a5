"""Cost against quality of per-token controllers (arXiv 2410.20022, Figure 1b), and differences against their margin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.errors import InputError
from depthdial.report.gates.summary import MARGIN_POINTS, METRICS, ROUGE, A, B, GateCell, metrics_of
from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    EDGE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Look,
    figure_style,
    headed,
    look_key,
    means_and_reach,
    new_figure,
)
from depthdial.report.kit.tables import Cells
from depthdial.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODE_TITLES = {
    "sampled": "Sampled: each gate draws its decision",
    "argmax": "Argmax: each gate takes the likelier one",
    "none": "Controllers without chance",
}
_OLIVE = "#8a8a00"  # the palette's yellow is too pale for a line
_LOOKS = {
    "hidden": Look("gates: hidden state", BLUE, "o", "-"),
    "fixed": Look("gates: fixed input", VERMILION, "s", "--"),
    "position": Look("gates: position", GREEN, "^", "-."),
    "embedding": Look("gates: embedding", PURPLE, "v", ":"),
    "embedding+position": Look("gates: embedding + position", ORANGE, "D", (0, (6, 1, 1, 1))),
    "bernoulli": Look("Bernoulli at the gates' rates", SKY, "X", (0, (3, 1))),
    "static": Look("static route", BLACK, "d", (0, (1, 1))),
    "margin": Look("exit by softmax margin", GRAY, "<", (0, (5, 2))),
    "saturation": Look("exit by saturation", _OLIVE, ">", (0, (3, 1, 1, 1))),
    "full": Look("full model", BLACK, "*", "none"),
}


def draw_gates(cells: Sequence[GateCell]) -> Figure:
    """A row of panels for each metric, a column for each mode; controllers without a mode stand in every column.

    Points are means over seeds with 95% intervals over them, or over sequences where there is one seed.
    """
    modes = [mode for mode in ("sampled", "argmax") if any(cell.mode == mode for cell in cells)] or ["none"]
    metrics = metrics_of(cells)
    if not metrics:
        raise InputError(f"The rows hold none of {', '.join(METRICS)}: measure one of them first.")
    with figure_style():
        figure = new_figure(1.3 + 2.15 * len(metrics))
        panels = figure.subplots(len(metrics), len(modes), sharex=True, sharey="row", squeeze=False)
        for down, metric in enumerate(metrics):
            for across, mode in enumerate(modes):
                _panel(panels[down, across], [cell for cell in cells if cell.mode in (mode, "none")], metric)
            panels[down, 0].set_ylabel(METRICS[metric])
            _fit_heights(panels[down, 0], cells, metric)
        for across, mode in enumerate(modes):
            panels[0, across].set_title(MODE_TITLES[mode])
            panels[-1, across].set_xlabel(f"mean layers run per response token (% of {cells[0].n_layers})")
        drawn = {cell.controller for cell in cells}
        look_key(figure, [look for name, look in _LOOKS.items() if name in drawn], n_columns=3, handlelength=3)
    return figure


def draw_inputs(cells: Sequence[GateCell], target: float) -> Figure:
    """All controllers at one target, a row each: the metrics side by side, sampled (filled) and argmax (hollow).

    Where several inputs were trained at one target only, their points cover each other on the curves.
    """
    from matplotlib.lines import Line2D

    at_target = [cell for cell in cells if cell.target == target]
    controllers = [name for name in _LOOKS if any(cell.controller == name for cell in at_target)]
    metrics = metrics_of(at_target)
    with figure_style():
        figure = new_figure(1.35 + 0.3 * len(controllers))
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for cell in at_target:
                _dot(axes, cell, metric, controllers.index(cell.controller))
            axes.set_xlabel(METRICS[metric])
            axes.grid(False, axis="y")
        panels[0].set_yticks(range(len(controllers)), [_LOOKS[name].label for name in controllers])
        panels[0].set_ylim(len(controllers) - 0.5, -0.5)
        headed(figure, f"All controllers at a target of {100 * target:g}% of the layers: means with 95% intervals")
        modes = {"sampled": GRAY, "argmax": "white", "none": BLACK}
        labels = {"none": "no chance (interval over sequences)"}
        handles = [
            Line2D([], [], marker="o", linestyle="none", color=GRAY, markerfacecolor=color, label=labels.get(mode, mode))
            for mode, color in modes.items()
            if any(cell.mode == mode for cell in at_target)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def most_compared_target(cells: Sequence[GateCell]) -> float | None:
    """The target with the most controllers, of several the lowest; None without any."""
    targets = sorted({cell.target for cell in cells if cell.target is not None})
    return max(targets, key=lambda t: len({c.controller for c in cells if c.target == t}), default=None)


def draw_differences(table: Sequence[Cells], metric: str) -> Figure:
    """`differences_table` as a picture: each difference with its intervals, before the margin's band."""
    kinds = (
        ("difference", "over seeds (t)", BLUE, "o"),
        ("over_sequences", "over sequences (bootstrap)", VERMILION, "s"),
        ("two_way", "over both (bootstrap)", GREEN, "^"),
        ("at_equal_cost", "over seeds, at equal cost (t)", PURPLE, "D"),
    )
    shown = [kind for kind in kinds if any(isinstance(row.get(kind[0]), Interval) for row in table)]
    with figure_style():
        figure = new_figure(1.5 + (0.12 + 0.11 * len(shown)) * len(table))
        axes = figure.add_subplot()
        if metric == ROUGE:
            band = {"color": "#e8e8e8", "linewidth": 0, "zorder": 0, "label": f"within the margin, ±{MARGIN_POINTS:g}"}
            axes.axvspan(-MARGIN_POINTS, MARGIN_POINTS, **band)
        axes.axvline(0, color=BLACK, linewidth=0.8, zorder=1)
        for at, (name, label, color, marker) in enumerate(shown):
            places = np.arange(len(table)) + 0.76 * ((at + 0.5) / len(shown) - 0.5)
            found = [(place, row[name]) for place, row in zip(places, table, strict=True) if isinstance(row[name], Interval)]
            means, reach = means_and_reach([interval for _, interval in found])
            style: dict[str, Any] = {"fmt": marker, "color": color, "markersize": 4, "elinewidth": 1.2, "label": label}
            axes.errorbar(means, [place for place, _ in found], xerr=reach, **style)
        axes.set_yticks(range(len(table)), [f"{row['mode']}, {row['target']}" for row in table])
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.grid(False, axis="y")
        for edge in np.arange(1, len(table)) - 0.5:
            axes.axhline(edge, color="#dddddd", linewidth=0.6)
        axes.set_xlabel(f"{A} minus {B}: {METRICS[metric]}, with 95% intervals")
        beside = ", and the margin of equivalence" if metric == ROUGE else ""
        headed(figure, f"{A.capitalize()} against {B}: differences by mode and target{beside}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _panel(axes: Axes, cells: Sequence[GateCell], metric: str) -> None:
    for controller in _LOOKS:
        mine = [(100 * cell.cost, cell.interval(metric)) for cell in cells if cell.controller == controller]
        known = [(cost, interval) for cost, interval in mine if interval is not None and np.isfinite(cost)]
        if known:
            _series(axes, controller, sorted(known, key=lambda point: point[0]))


def _series(axes: Axes, controller: str, points: Sequence[tuple[float, Interval]]) -> None:
    look, is_compared = _LOOKS[controller], controller in (A, B)  # with bands, above the others
    costs, (means, reach) = [cost for cost, _ in points], means_and_reach([interval for _, interval in points])
    # A lone point may lie on the lines of the two compared, and is smaller than their marks.
    order = 6 if len(points) == 1 else 5 if is_compared else 3
    if is_compared and len(points) > 1:
        low, high = means - reach[0], means + reach[1]
        axes.fill_between(costs, low, high, color=look.color, alpha=0.18, linewidth=0, zorder=2)
    else:
        style: dict[str, Any] = {"fmt": "none", "ecolor": look.color, "elinewidth": 0.9, "alpha": 0.6, "zorder": order - 1}
        axes.errorbar(costs, means, yerr=reach, **style)
    width, size = (1.9, 5) if is_compared else (1.1, 10 if controller == "full" else 4)
    axes.plot(costs, means, **look.drawn, linewidth=width, markersize=size, zorder=order, **EDGE)


def _dot(axes: Axes, cell: GateCell, metric: str, row: int) -> None:
    interval = cell.interval(metric)
    if interval is None:
        return
    look, height = _LOOKS[cell.controller], row + {"sampled": -0.15, "argmax": 0.15, "none": 0.0}[cell.mode]
    filling = "white" if cell.mode == "argmax" else look.color
    means, reach = means_and_reach([interval])
    axes.errorbar(means, [height], xerr=reach, fmt="none", ecolor=look.color, elinewidth=1.1)
    style: dict[str, Any] = {"markerfacecolor": filling, "markeredgecolor": look.color, "markersize": 5}
    axes.plot(interval.mean, height, marker=look.marker, **style)


def _fit_heights(axes: Axes, cells: Sequence[GateCell], metric: str) -> None:
    """Heights by the means and the intervals over seeds: those over sequences are far wider and would flatten the curves."""
    known = [(interval, len(cell.seeds) > 1) for cell in cells if (interval := cell.interval(metric))]
    heights = [height for i, is_over_seeds in known for height in ((i.mean, i.low, i.high) if is_over_seeds else (i.mean,))]
    finite = np.array(heights)[np.isfinite(heights)]
    room = 0.08 * (finite.max() - finite.min()) or 0.05 * abs(finite.max()) or 0.05
    axes.set_ylim(finite.min() - room, finite.max() + room)
