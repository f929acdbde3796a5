"""Areas of how many sequences go to each route, and the routes' colours; shared by the pictures that show what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more routes than this, labels beside their points would cover each other: the legend of the shares names them.
LABELLED_ROUTES = 14


def fill_shares(axes: Axes, routes: Sequence[str], budgets: np.ndarray, shares: np.ndarray, colors: Sequence[Any]) -> None:
    """Stacked areas of `shares` (n_budgets, n_routes) over `budgets`, cheapest route at the bottom, labelled by route."""
    labels = [shortened(name) for name in routes]
    shares = 100 * shares
    if len(budgets) == 1:  # every assignment costs the same: a strip instead of an area without width
        half = min(0.5, 0.5 * abs(budgets[0]) or 0.5)
        budgets, shares = np.array([budgets[0] - half, budgets[0] + half]), np.repeat(shares, 2, axis=0)
    width = 0.4 if len(labels) <= LABELLED_ROUTES else 0.0  # thin areas would be all edge
    areas = axes.stackplot(budgets, shares.T, colors=colors, labels=labels, edgecolor="white", linewidth=width)
    for i, area in enumerate(areas):
        area.set_hatch(("", "////", "", "\\\\\\\\")[i % 4])  # neighbours differ in grayscale print too
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    axes.grid(False)
    axes.set_ylabel("share of sequences (%)")


def route_colors(n_routes: int) -> list[Any]:
    """From dark to light with rising cost, so that the order survives grayscale; the brightest yellow is the star's."""
    from matplotlib import colormaps

    return [tuple(color) for color in colormaps["viridis"](np.linspace(0.0, 0.93, n_routes))]


def legend_columns(labels: Sequence[str]) -> int:
    """Four, or of many routes as many as fit the width of the figure."""
    return 4 if len(labels) <= LABELLED_ROUTES else max(4, 100 // (max(map(len, labels)) + 6))
