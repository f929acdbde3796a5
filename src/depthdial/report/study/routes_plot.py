"""Pictures of routes: which layers run, for a family at every cost (arXiv 2410.20022, Figure 3) or for any routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from depthdial.errors import InputError
from depthdial.report.kit.style import BLUE, SKIPPED, figure_style, new_figure, save_figure, shortened
from depthdial.routes import AnyRoute, RandomRoute

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A random rule is shown by what it draws for this sequence.
_SHOWN_SEQUENCE = "0"
Color = tuple[float, float, float]
_RUN, _SKIPPED = "█", "·"
_RUNS_OR_NOT = ((1.0, "runs"), (0.0, "skipped"))
_RUNS_AT_TIMES = ((1.0, "runs"), (0.5, "runs on half of the sequences"), (0.0, "skipped"))


def _runs(route: AnyRoute) -> list[bool]:
    """Layer by layer whether it runs; of a random rule as it is drawn for one sequence."""
    layers = set(route.for_sequence(_SHOWN_SEQUENCE).layers)
    return [i in layers for i in range(route.n_layers)]


def plot_family(routes: Sequence[AnyRoute], path: Path) -> Path:
    """Draw which layers run: layer against cost for routes of one family, layer by route for a mixed list."""
    title = f"layers that run, of {_require_one_depth(routes)}{_random_note(routes)}"
    costs = [len(route) for route in routes]
    families = {route.name.partition(":")[0] for route in routes if not route.is_full}
    if len(set(costs)) == len(costs) > 1 and len(families) == 1 and all(":" in r.name or r.is_full for r in routes):
        figure = draw_family(routes, f"{shortened(families.pop())}: {title}")
    else:
        grid = np.array([_runs(route) for route in routes])
        figure = draw_routes([route.name for route in routes], grid, title.capitalize())
    return save_figure(figure, path)


def family_text(routes: Sequence[AnyRoute]) -> str:
    """The same picture as text for a terminal: a row for each route, a column for each layer."""
    n_layers = _require_one_depth(routes)
    width = max(len(route.name) for route in routes)
    costs = [f"{len(route)}/{n_layers} ({route.cost:.0%})" for route in routes]
    indent = " " * (width + 2)
    cost_width = max(map(len, ["layers", *costs]))
    ruler = "".join(f"{i:<10}" for i in range(0, n_layers, 10)).rstrip()
    lines = [f"{indent}{'layers':>{cost_width}}  {ruler}"]
    for route, cost in zip(routes, costs, strict=True):
        bar = "".join(_RUN if is_run else _SKIPPED for is_run in _runs(route))
        lines.append(f"{route.name:<{width}}  {cost:>{cost_width}}  {bar}")
    lines.append(f"{indent}{_RUN} runs  {_SKIPPED} skipped" + _random_note(routes))
    return "\n".join(lines)


def draw_family(routes: Sequence[AnyRoute], title: str) -> Figure:
    """Layer against cost, one column for each number of layers run (the paper's Figure 3)."""
    ordered = sorted(routes, key=len)
    n_layers = ordered[0].n_layers
    grid = np.array([_runs(route) for route in ordered])
    with figure_style():
        cell_in = min(0.2, 5.8 / max(len(ordered), n_layers))
        figure = new_figure(max(2.4, 1.2 + cell_in * n_layers), max(3.2, 1.0 + cell_in * len(ordered)))
        axes = figure.add_subplot()
        fill_cells(axes, grid, np.arange(len(grid) + 1) - 0.5, shade)
        tick_numbers(axes, "x", [len(route) for route in ordered])
        tick_numbers(axes, "y", list(range(n_layers)))
        axes.set(xlabel="cost (layers run)", ylabel="layer", title=title)
        shade_key(figure, _RUNS_OR_NOT)
    return figure


def draw_routes(names: Sequence[str], share_run: np.ndarray, title: str) -> Figure:
    """Layer by route, a row for each route with its number of layers.

    Args:
        share_run: (n_routes, n_layers) the share of sequences on which each layer runs.
    """
    n_routes = len(names)
    with figure_style():
        figure = new_figure(1.1 + 0.21 * n_routes)
        axes = figure.add_subplot()
        layer_rows(axes, names, share_run)
        counts = axes.secondary_yaxis("right")
        counts.set_yticks(range(n_routes), [f"{layers:g}" for layers in share_run.sum(axis=1)])
        counts.set_ylabel("layers run")
        counts.tick_params(length=0)
        counts.spines[:].set_visible(False)
        axes.set(xlabel="layer", title=title)
        shade_key(figure, _RUNS_OR_NOT if np.isin(share_run, (0, 1)).all() else _RUNS_AT_TIMES)
    return figure


def layer_rows(axes: Axes, names: Iterable[str], shades: np.ndarray) -> None:
    """Shades (n_names, n_layers), a row for each name."""
    fill_cells(axes, shades.T, np.arange(shades.shape[1] + 1) - 0.5, shade)
    axes.invert_yaxis()
    axes.set_yticks(range(len(shades)), [shortened(name) for name in names])
    tick_numbers(axes, "x", list(range(shades.shape[1])))


def fill_cells(axes: Axes, grid: np.ndarray, edges: np.ndarray, color_of: Callable[[float], Color]) -> None:
    """Fill cell (x, y) by `grid[x, y]`, whose 0 is a skipped layer and stays pale; ticks of layers are the caller's.

    Args:
        grid: (n_across, n_up); `edges`: (n_across + 1,) where columns begin and end.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    n_up = grid.shape[1]
    patches, colors = [], []
    for column, left, right in zip(grid.tolist(), edges[:-1], edges[1:], strict=True):
        y = 0
        for share, run in groupby(column):  # one rectangle for equal neighbours keeps the file small
            length = len(list(run))
            if share > 0:
                patches.append(Rectangle((left, y - 0.5), right - left, length))
                colors.append(color_of(share))
            y += length
    axes.set_facecolor(SKIPPED)
    axes.add_collection(PatchCollection(patches, facecolors=colors, edgecolors="none", zorder=1))
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.5, n_up - 0.5))
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(np.arange(n_up + 1) - 0.5, minor=True)
    axes.set_axisbelow(False)  # the white lines between cells lie on them
    axes.grid(False, which="major")
    axes.grid(True, which="minor", color="white", linewidth=0.9)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def shade(share: float) -> Color:
    """From the paleness of a skipped layer (0) to the colour of one that runs (1)."""
    from matplotlib.colors import to_rgb

    pale, dark = to_rgb(SKIPPED), to_rgb(BLUE)
    red, green, blue = (p + share * (d - p) for p, d in zip(pale, dark, strict=True))
    return red, green, blue


def tick_numbers(axes: Axes, which: str, numbers: Sequence[int], most: int = 16) -> None:
    """Number every cell where there is room, else every 2nd, 5th, 10th .. number."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 10**6) if len(numbers) / step <= most)
    places = [i for i, number in enumerate(numbers) if number % every == 0]
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(places, [str(numbers[i]) for i in places])


def shade_key(figure: Figure, shades: Sequence[tuple[float, str]]) -> None:
    """Below the figure, what its shades mean."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=shade(share), label=label) for share, label in shades]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1, handleheight=1)


def _random_note(routes: Sequence[AnyRoute]) -> str:
    rules = any(isinstance(route, RandomRoute) for route in routes)
    return f' (random rules as drawn for sequence "{_SHOWN_SEQUENCE}")' if rules else ""


def _require_one_depth(routes: Sequence[AnyRoute]) -> int:
    if not routes:
        raise InputError("There is no route to show: name at least one, such as full or uls:50%.")
    depths = sorted({route.n_layers for route in routes})
    if len(depths) > 1:
        raise InputError(f"The routes are for models of {depths[0]} and {depths[-1]} layers: show one depth at a time.")
    return depths[0]
