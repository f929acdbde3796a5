"""Pictures of a comparison of searches: which layers each method drops first, which it keeps, and what that costs in KL."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import (
    BLACK,
    EDGE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    YELLOW,
    Look,
    figure_style,
    headed,
    log_heights,
    looks,
    new_figure,
    shortened,
)
from depthdial.report.search.comparison import Comparison, first_drops
from depthdial.report.search.plot import draw_intervals
from depthdial.report.study.routes_plot import layer_rows, shade_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In the study's order. The fixed families keep the looks that they have everywhere.
_LOOKS: tuple[tuple[str, str, Any], ...] = (
    (BLACK, "h", "-"),
    (ORANGE, "p", "-"),
    (GREEN, "^", "-."),
    (PURPLE, "v", ":"),
    (GRAY, "X", (0, (4, 1))),
    (YELLOW, "H", (0, (3, 1, 1, 1))),
)
_SPREAD = 0.4  # of the least distance between two numbers of layers: points side by side at one of them


def draw_importance_by_method(comparison: Comparison) -> Figure:
    """A row for each search, a column for each layer: the darker, the longer the method keeps the layer.

    The number in a cell is how many layers the first route without that layer drops; a dark cell without a number is a layer
    that all routes keep.
    """
    ranks = [first_drops(family) for family in comparison.families.values()]
    most = max((rank for row in ranks for rank in row if rank), default=1)
    # Kept layers stand a step apart from the last that is dropped.
    grid = np.array([[(most + 4 if rank is None else rank) / (most + 4) for rank in row] for row in ranks])
    with figure_style():
        figure = new_figure(1.15 + 0.26 * len(ranks))
        axes = figure.add_subplot()
        layer_rows(axes, comparison.families, grid)
        axes.set_xlabel("layer (number: how many layers the first route without it drops)")
        for row, places in enumerate(ranks):
            for layer, rank in enumerate(places):
                if rank is not None:
                    color = "white" if grid[row, layer] > 0.55 else BLACK
                    axes.text(layer, row, str(rank), ha="center", va="center", fontsize=7, color=color)
        shades = (1 / (most + 4), most / (most + 4), 1.0)
        shade_key(figure, list(zip(shades, ("dropped first", "dropped last", "kept by all routes"), strict=True)))
        headed(figure, f"Order in which each search drops the {comparison.n_layers} layers")
    return figure


def draw_kept_layers(comparison: Comparison) -> Figure:
    """A panel for each number of layers: which run, a row for each method."""
    n_methods, sizes = len(comparison.methods), comparison.sizes
    with figure_style():
        figure = new_figure(1.0 + len(sizes) * (0.35 + 0.17 * n_methods))
        panels = np.atleast_1d(figure.subplots(len(sizes), 1, sharex=True))
        for axes, size in zip(panels, sizes, strict=True):
            grid = np.zeros((n_methods, comparison.n_layers))
            for row, one in enumerate(comparison.at[size].values()):
                grid[row, one.share_run > 0] = 1
            layer_rows(axes, comparison.at[size], grid)
            axes.set_title(f"{size} layers")
        panels[-1].set_xlabel("layer")
        shade_key(figure, [(1.0, "runs"), (0.0, "skipped")])
        headed(figure, f"Layers that each method's routes run, of {comparison.n_layers}")
    return figure


def draw_kl_by_method(comparison: Comparison) -> Figure:
    """KL to the full model against layers run, a line for each method, with 95% intervals over sequences."""
    methods, found = comparison.methods, _method_looks(comparison)
    spread = _SPREAD * min((a - b for a, b in pairwise(comparison.sizes)), default=1)
    with figure_style():
        figure = new_figure(4.4)
        axes = figure.add_subplot()
        for number, method in enumerate(methods):
            shift = spread * (number / max(1, len(methods) - 1) - 0.5)
            points = [(size + shift, comparison.at[size][method].interval("kl")) for size in comparison.sizes]
            look = found[method]
            draw_intervals(axes, points, **look.drawn, **EDGE, linewidth=1.2, elinewidth=0.9, label=look.label)
        log_heights(axes)
        axes.set_xticks(comparison.sizes, [str(size) for size in comparison.sizes])
        axes.set_xlabel(f"layers run, of {comparison.n_layers} (points of one number stand side by side)")
        axes.set_ylabel("KL to the full model (nats per token)")
        headed(figure, _kl_title(comparison))
        figure.legend(loc="outside lower center", ncols=3, handlelength=3)
    return figure


def _method_looks(comparison: Comparison) -> dict[str, Look]:
    fixed = looks([name for name in comparison.methods if name not in comparison.families])
    searched = {
        name: Look(f"{shortened(name)}, searched", *_LOOKS[i % len(_LOOKS)]) for i, name in enumerate(comparison.families)
    }
    return {**fixed, **searched}


def _kl_title(comparison: Comparison) -> str:
    size = comparison.sizes[0]
    known = comparison.known_kl(size)
    if not known:
        return "KL to the full model by method"
    best, worst = (pick(known, key=lambda name: known[name].mean) for pick in (min, max))
    least = f"{known[best].mean:.2g} nats ({shortened(best)})"
    return f"With {size} layers KL is {least} to {known[worst].mean:.2g} ({shortened(worst)})"
