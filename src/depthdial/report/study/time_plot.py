"""Measured time: quality against it, and against the layers run. Theory (layers) and seconds never share an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.labels import between, place_labels
from depthdial.report.kit.style import GRAY, Look, figure_style, headed, keep_to_range, looks, new_figure, shortened
from depthdial.report.study.oracle_plot import METRIC_NAMES, short_name
from depthdial.report.study.summary import RouteRows, full_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_WORST_FIT = 0.25


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
    """Time per step = base + layers * time per layer; None with fewer than two depths, or where times follow no such line.

    That is where a point is off by more than a quarter, which happens when a step is too short to be measured well.
    """
    layers = np.array([route.cost_layers for route in routes])
    times = np.array([route.step_ms for route in routes], dtype=float)
    if len(set(layers.tolist())) < 2:
        return None
    design = np.stack([np.ones_like(layers), layers], axis=1)
    base_ms, layer_ms = np.linalg.lstsq(design, times, rcond=None)[0]
    residuals = np.abs(design @ [base_ms, layer_ms] - times) / times
    fit = AffineFit(float(base_ms), float(layer_ms), float(residuals.max()))
    return fit if fit.layer_ms > 0 and fit.worst_error <= _WORST_FIT else None


def draw_quality_time(routes: Sequence[RouteRows], metric: str) -> Figure:
    """Quality against measured milliseconds per decoding step; both also relative to the full model."""
    full = full_of(routes)
    with figure_style():
        figure = new_figure(4.2)
        axes = figure.add_subplot()
        scored = [route for route in routes if route.mean(metric) is not None]
        styles = looks(list(dict.fromkeys(route.family for route in scored)))
        bars: list[tuple[float, float]] = []
        for route in scored:
            interval = route.interval(metric)
            assert interval is not None
            low, high = (interval.low, interval.high) if np.isfinite(interval.low) else (interval.mean, interval.mean)
            _point(axes, route, styles[route.family], interval.mean, low, high)
            fastest, slowest = route.step_ms_range or (route.step_ms or 0.0, route.step_ms or 0.0)
            bars += between((route.step_ms or 0.0, low), (route.step_ms or 0.0, high))
            bars += between((fastest, interval.mean), (slowest, interval.mean), 5)
        axes.set_xlabel("measured time per decoding step (ms)")
        axes.set_ylabel(METRIC_NAMES.get(metric, metric))
        axes.margins(0.12)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        keep_to_range(axes, metric)
        if full is not None and full.step_ms and full.mean(metric):
            _relative_axes(axes, full.step_ms, full.mean(metric) or 1.0)
        headed(figure, _quality_title(scored, full, metric))
        _legend(figure, axes, scored)
        places = [(route.step_ms or 0.0, route.mean(metric) or 0.0) for route in scored]
        place_labels(axes, places, [shortened(route.name) for route in scored], avoid=bars)
    return figure


def draw_time_layers(routes: Sequence[RouteRows]) -> Figure:
    """Measured milliseconds per decoding step against layers run, with the affine fit."""
    with figure_style():
        figure = new_figure(3.6)
        axes = figure.add_subplot()
        styles = looks(list(dict.fromkeys(route.family for route in routes)))
        for route in routes:
            spread = route.step_ms_range
            if spread is not None:
                axes.plot([route.cost_layers] * 2, spread, color=GRAY, linewidth=1, zorder=3)
            look = styles[route.family]
            # Hollow, so that routes of equal depth, which take about the same time, do not hide each other.
            hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3, "markersize": 7}
            axes.plot(route.cost_layers, route.step_ms or 0.0, marker=look.marker, color=look.color, zorder=4, **hollow)
        fit = affine_fit(routes)
        if fit is not None:
            x = np.array([0.0, routes[0].n_layers])
            axes.plot(x, fit.base_ms + fit.layer_ms * x, color=GRAY, linestyle="--", linewidth=1.2, zorder=2)
        axes.set_xlim(0, routes[0].n_layers * 1.03)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layers run for a response token")
        axes.set_ylabel("measured time per decoding step (ms)")
        headed(figure, "Measured time of a decoding step, by layers run" if fit is None else describe_fit(fit))
        _legend(figure, axes, routes)
    return figure


def _point(axes: Axes, route: RouteRows, look: Look, mean: float, low: float, high: float) -> None:
    step_ms = route.step_ms or 0.0
    axes.plot([step_ms, step_ms], [low, high], color=GRAY, linewidth=1, zorder=3)
    if route.step_ms_range is not None:
        axes.plot(route.step_ms_range, [mean, mean], color=GRAY, linewidth=1, zorder=3)
    axes.plot(step_ms, mean, marker=look.marker, color=look.color, markersize=6, linestyle="none", zorder=4)


def _relative_axes(axes: Axes, full_ms: float, full_value: float) -> None:
    time = axes.secondary_xaxis("top", functions=_in_units_of(full_ms))
    time.set_xlabel("time, relative to the full model")
    quality = axes.secondary_yaxis("right", functions=_in_units_of(full_value))
    quality.set_ylabel("quality, relative to the full model")


def _in_units_of(unit: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return lambda value: value / unit, lambda ratio: ratio * unit


def _legend(figure: Figure, axes: Axes, routes: Sequence[RouteRows]) -> None:
    from matplotlib.lines import Line2D

    families = looks(list(dict.fromkeys(route.family for route in routes)))
    handles = [
        Line2D([], [], marker=look.marker, color=look.color, linestyle="none", label=look.label)
        for look in families.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handletextpad=0.2)


def _quality_title(routes: Sequence[RouteRows], full: RouteRows | None, metric: str) -> str:
    """The fastest route that keeps nine tenths of the full model's quality, where quality is a share of something."""
    what = short_name(metric)
    target = None if full is None or metric in ("kl", "nll") else full.mean(metric)
    if full is None or not target or not full.step_ms:
        return f"{what} and measured time of each route"
    keeping = [route for route in routes if (route.mean(metric) or 0.0) >= 0.9 * target]
    best = min(keeping, key=lambda route: route.step_ms or 0.0)
    if best.is_full:
        return f"{what} and measured time: no shallower route keeps 90% of the full model's"
    time_share, quality_share = (best.step_ms or 0.0) / full.step_ms, (best.mean(metric) or 0.0) / target
    return f"{what}: {shortened(best.name)} reaches {quality_share:.0%} of the full model's in {time_share:.0%} of its time"


def describe_fit(fit: AffineFit) -> str:
    return (
        f"Decoding step: {fit.base_ms:.2f} ms, and {fit.layer_ms:.2f} ms for each layer run "
        f"(all points within {100 * fit.worst_error:.1f}% of the line)"
    )
