"""Measured time: quality against it, and against the layers run. Theory (layers) and seconds never share an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from depthdial.report.oracle_plot import METRIC_NAMES
from depthdial.report.style import GRAY, figure_style, looks, new_figure, place_labels, shortened
from depthdial.report.summary import RouteRows, full_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AffineFit:
    """Least squares of milliseconds per step on layers run; `worst_error` is the largest relative residual."""

    base_ms: float
    layer_ms: float
    worst_error: float


def timed_routes(routes: Sequence[RouteRows]) -> list[RouteRows]:
    """Routes whose times can be compared: timed in batches of the full model's sizes (or of the first timed route's)."""
    timed = [route for route in routes if route.step_ms]
    if not timed:
        return []
    full = full_of(timed)
    yardstick = full if full is not None else timed[0]
    return [route for route in timed if route.is_timed_like(yardstick)]


def affine_fit(routes: Sequence[RouteRows]) -> AffineFit | None:
    """Time per step = base + layers * time per layer; None with fewer than two depths."""
    layers = np.array([route.cost_layers for route in routes])
    times = np.array([route.step_ms for route in routes], dtype=float)
    if len(set(layers.tolist())) < 2:
        return None
    design = np.stack([np.ones_like(layers), layers], axis=1)
    base_ms, layer_ms = np.linalg.lstsq(design, times, rcond=None)[0]
    residuals = np.abs(design @ [base_ms, layer_ms] - times) / times
    return AffineFit(float(base_ms), float(layer_ms), float(residuals.max()))


def draw_quality_time(routes: Sequence[RouteRows], metric: str) -> Figure:
    """Quality against measured milliseconds per decoding step; both also relative to the full model."""
    full = full_of(routes)
    with figure_style():
        figure = new_figure(4.2)
        axes = figure.add_subplot()
        scored = [route for route in routes if route.mean(metric) is not None]
        for route in scored:
            interval = route.interval(metric)
            assert interval is not None
            low, high = (interval.low, interval.high) if np.isfinite(interval.low) else (interval.mean, interval.mean)
            _point(axes, route, interval.mean, low, high)
        axes.set_xlabel("measured time per decoding step (ms)")
        axes.set_ylabel(METRIC_NAMES.get(metric, metric))
        axes.set_xlim(left=0)
        if metric not in ("kl", "nll"):
            axes.set_ylim(bottom=0)
        if full is not None and full.step_ms and full.mean(metric):
            _relative_axes(axes, full.step_ms, full.mean(metric) or 1.0)
        axes.set_title(_quality_title(scored, full, metric), pad=8)
        _legend(figure, axes, scored)
        places = [(route.step_ms or 0.0, route.mean(metric) or 0.0) for route in scored]
        place_labels(axes, places, [shortened(route.name) for route in scored])
    return figure


def draw_time_layers(routes: Sequence[RouteRows]) -> Figure:
    """Measured milliseconds per decoding step against layers run, with the affine fit."""
    with figure_style():
        figure = new_figure(3.6)
        axes = figure.add_subplot()
        for route in routes:
            spread = route.step_ms_range
            if spread is not None:
                axes.plot([route.cost_layers] * 2, spread, color=GRAY, linewidth=1, zorder=3)
            look = looks([r.family for r in routes])[route.family]
            axes.plot(route.cost_layers, route.step_ms or 0.0, marker=look.marker, color=look.color, linestyle="none")
        fit = affine_fit(routes)
        if fit is not None:
            x = np.array([0.0, routes[0].n_layers])
            axes.plot(x, fit.base_ms + fit.layer_ms * x, color=GRAY, linestyle="--", linewidth=1.2, zorder=2)
        axes.set_xlim(0, routes[0].n_layers * 1.03)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layers run for a response token")
        axes.set_ylabel("measured time per decoding step (ms)")
        axes.set_title("Measured time of a decoding step, by layers run" if fit is None else _fit_title(fit))
        _legend(figure, axes, routes)
    return figure


def _point(axes: Axes, route: RouteRows, mean: float, low: float, high: float) -> None:
    look = looks([route.family])[route.family]
    step_ms = route.step_ms or 0.0
    axes.plot([step_ms, step_ms], [low, high], color=GRAY, linewidth=1, zorder=3)
    if route.step_ms_range is not None:
        axes.plot(route.step_ms_range, [mean, mean], color=GRAY, linewidth=1, zorder=3)
    size = 9 if look.marker == "*" else 6
    axes.plot(step_ms, mean, marker=look.marker, color=look.color, markersize=size, linestyle="none", zorder=4)


def _relative_axes(axes: Axes, full_ms: float, full_value: float) -> None:
    time = axes.secondary_xaxis("top", functions=(lambda x: x / full_ms, lambda x: x * full_ms))
    time.set_xlabel("time, relative to the full model")
    quality = axes.secondary_yaxis("right", functions=(lambda y: y / full_value, lambda y: y * full_value))
    quality.set_ylabel("quality, relative to the full model")


def _legend(figure: Figure, axes: Axes, routes: Sequence[RouteRows]) -> None:
    from matplotlib.lines import Line2D

    families = looks(list(dict.fromkeys(route.family for route in routes)))
    handles = [
        Line2D([], [], marker=look.marker, color=look.color, linestyle="none", label=look.label)
        for look in families.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handletextpad=0.2)


def _quality_title(routes: Sequence[RouteRows], full: RouteRows | None, metric: str) -> str:
    what = METRIC_NAMES.get(metric, metric).partition(" (")[0]
    return f"{what} and measured time of each route"


def _fit_title(fit: AffineFit) -> str:
    return (
        f"A decoding step takes {fit.base_ms:.2f} ms and {fit.layer_ms:.2f} ms for each layer run "
        f"(fit within {fit.worst_error:.0%})"
    )
