"""What the plots against a budget have in common: names of metrics and costs, fixed routes, shares of what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.oracles.baselines import FixedRoute
from depthdial.oracles.costs import LAYER_STEPS
from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import BLACK, BLUE, GRAY, YELLOW, family_of, looks, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more routes than this, labels beside the points would cover each other.
LABELLED_ROUTES = 14
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
    short = {"kl": "KL", "nll": "NLL", "agreement": "Agreement"}
    return short.get(metric, METRIC_NAMES.get(metric, metric).partition(" (")[0])


def label_cost(axes: Axes, cost: str, suffix: str = "") -> None:
    """Name the axis of budgets; layer-steps are drawn as shares of the full model's and written as percentages."""
    from matplotlib.ticker import PercentFormatter

    axes.set_xlabel(f"{COST_NAMES.get(cost, f'Cost: mean {cost} per sequence')}{suffix}")
    if cost == LAYER_STEPS:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))


def band(axes: Axes, x: Any, ends: np.ndarray | None, **look: Any) -> None:
    """The area between the `ends` (n, 2) of an interval, where there is one."""
    if ends is not None:
        axes.fill_between(x, *ends.T, **{"color": BLUE, "alpha": 0.18, "linewidth": 0, **look})


def star(axes: Axes, x: float, y: float, label: str | None, reach: Sequence[float] | None = None, **look: Any) -> None:
    """Where an oracle is as good as the full model, with the interval of that budget."""
    if reach is not None:
        axes.plot(reach, [y, y], color=BLACK, linewidth=3, alpha=0.55, zorder=7)
    look = {"markersize": 17, "markerfacecolor": YELLOW, "markeredgecolor": BLACK, "gid": "star", **look}
    axes.plot(x, y, marker="*", linestyle="none", zorder=8, label=label, **look)


def draw_fixed(axes: Axes, fixed: Sequence[FixedRoute], unnamed: str | None = None, *, is_colored: bool = False) -> None:
    """Each route for every sequence as a point with its interval; of few routes all but `unnamed` are labelled.

    To be called last, for labels keep away from what is drawn.
    """
    styles = looks(family_of(route.route) for route in fixed)
    colors = route_colors(len(fixed)) if is_colored else [GRAY] * len(fixed)
    for route, color in zip(fixed, colors, strict=True):
        if route.low is not None and route.high is not None:
            axes.plot([route.cost, route.cost], [route.low, route.high], color=GRAY, linewidth=1, zorder=4)
        look: dict[str, Any] = {"marker": styles[family_of(route.route)].marker, "markersize": 6}
        axes.plot(route.cost, route.value, **look, color=color, markeredgecolor=BLACK, linestyle="none", zorder=5)
    named = [route for route in fixed if route.route != unnamed] if len(fixed) <= LABELLED_ROUTES else []
    place_labels(axes, [(route.cost, route.value) for route in named], [route.route for route in named])


def fill_shares(figure: Figure, axes: Axes, routes: Sequence[str], budgets: np.ndarray, shares: np.ndarray) -> None:
    """Stacked areas of `shares` (n_budgets, n_routes) over `budgets`, cheapest route at the bottom, with their legend."""
    labels = [shortened(name) for name in routes]
    shares = 100 * shares
    if len(budgets) == 1:  # every assignment costs the same: a strip instead of an area without width
        half = min(0.5, 0.5 * abs(budgets[0]) or 0.5)
        budgets, shares = np.array([budgets[0] - half, budgets[0] + half]), np.repeat(shares, 2, axis=0)
    width = 0.4 if len(labels) <= LABELLED_ROUTES else 0.0  # thin areas would be all edge
    look: dict[str, Any] = {"colors": route_colors(len(routes)), "edgecolor": "white", "linewidth": width}
    areas = axes.stackplot(budgets, shares.T, labels=labels, **look)
    for i, area in enumerate(areas):
        area.set_hatch(("", "////", "", "\\\\\\\\")[i % 4])  # neighbours differ in grayscale print too
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    axes.grid(False)
    axes.set_ylabel("share of sequences (%)")
    look = {"ncols": legend_columns(labels), "handlelength": 1.4, "columnspacing": 1.4}
    figure.legend(areas, labels, loc="outside lower center", **look)


def route_colors(n_routes: int) -> list[Any]:
    """From dark to light with rising cost, so that the order survives grayscale; the brightest yellow is the star's."""
    from matplotlib import colormaps

    return [tuple(color) for color in colormaps["viridis"](np.linspace(0.0, 0.93, n_routes))]


def legend_columns(labels: Sequence[str]) -> int:
    """Four, or of many routes as many as fit the width of the figure."""
    return 4 if len(labels) <= LABELLED_ROUTES else max(4, 100 // (max(map(len, labels)) + 6))
