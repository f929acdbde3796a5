"""Measured time: quality against it, and against the layers run. Theory (layers) and seconds never share an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.curves import METRIC_NAMES, short_name
from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import GRAY, Look, figure_style, headed, keep_to_range, look_key, looks, new_figure
from depthdial.report.study.summary import RouteRows, Speed, full_of
from depthdial.report.study.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORST_FIT = 0.25
_HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3, "markersize": 7, "linestyle": "none"}


@dataclass(frozen=True)
class AffineFit:
    """Least squares of milliseconds per step on layers run; `worst_error` is the largest relative residual."""

    base_ms: float
    layer_ms: float
    worst_error: float

    def __str__(self) -> str:
        return (
            f"Decoding step: {self.base_ms:.2f} ms, and {self.layer_ms:.2f} ms for each layer run "
            f"(all points within {100 * self.worst_error:.1f}% of the line)"
        )


@dataclass(frozen=True)
class Timed:
    """A route's time: the yardstick's measured milliseconds per decoding step, divided by the route's speed against it."""

    route: RouteRows
    speed: Speed
    yardstick_ms: float

    @property
    def ms(self) -> float:
        return self.yardstick_ms / self.speed.ratio


def timed_routes(routes: Sequence[RouteRows]) -> list[Timed]:
    """Routes whose times can be compared: timed in batches of the full model's sizes (or of the first timed route's)."""
    timed = [route for route in routes if route.milliseconds()]
    yardstick = full_of(timed) or next(iter(timed), None)
    if yardstick is None:
        return []
    found = [(route, route.speed_against(yardstick)) for route in timed]
    return [Timed(route, speed, yardstick.milliseconds() or 0.0) for route, speed in found if speed is not None]


def affine_fit(timed: Sequence[Timed]) -> AffineFit | None:
    """Time per step = base + layers * time per layer; None with fewer than two depths, or where times follow no such line.

    That is where a point is off by more than a quarter, which happens when a step is too short to be measured well.
    """
    layers, times = np.array([(one.route.cost_layers, one.ms) for one in timed]).T
    if len(np.unique(layers)) < 2:
        return None
    layer_ms, base_ms = np.polyfit(layers, times, 1).tolist()
    worst_error = float(np.abs((base_ms + layer_ms * layers) / times - 1).max())
    return AffineFit(base_ms, layer_ms, worst_error) if layer_ms > 0 and worst_error <= _WORST_FIT else None


def draw_quality_time(timed: Sequence[Timed], metric: str, verdict: Verdict | None = None) -> Figure:
    """Quality against the time of a decoding step, relative to the full model's; the verdict's choices are named."""
    full = full_of([one.route for one in timed])
    named = {"full"} | {choice.route.name for choice in (verdict.choices if verdict else ())}
    with figure_style():
        figure = new_figure(3.8)
        axes = figure.add_subplot()
        scored = [one for one in timed if one.route.mean(metric) is not None]
        styles = looks(one.route.family for one in scored)
        for one in scored:
            interval, look, time = one.route.interval(metric), styles[one.route.family], 100 / one.speed.ratio
            assert interval is not None
            bar = {"color": GRAY, "linewidth": 0.9, "alpha": 0.8, "zorder": 3}
            axes.plot([time, time], [interval.low, interval.high], **bar)
            if not one.speed.is_noisy:
                axes.plot([100 / one.speed.high, 100 / one.speed.low], [interval.mean] * 2, **bar)
            filling: dict[str, Any] = _HOLLOW if one.speed.is_noisy else {"markersize": 7}
            axes.plot(time, interval.mean, marker=look.marker, color=look.color, zorder=4, **filling)
        value = None if full is None else full.mean(metric)
        if verdict is not None and value is not None and metric == verdict.metric:
            label = f"{100 * verdict.keep:g}% of the full model's"
            axes.axhline(verdict.keep * value, color=GRAY, linestyle="--", linewidth=1, label=label)
        axes.set_xlabel("measured time of a decoding step (% of the full model's; hollow: too noisy to tell)")
        axes.set_ylabel(METRIC_NAMES.get(metric, metric))
        axes.margins(0.12)
        keep_to_range(axes, metric)
        headed(figure, f"{short_name(metric)} against measured time")
        _legend(figure, axes, styles.values())
        shown = [one for one in scored if one.route.name in named or len(scored) <= 4]
        points = [(100 / one.speed.ratio, one.route.mean(metric) or 0.0) for one in shown]
        place_labels(axes, points, [one.route.name for one in shown])
    return figure


def draw_time_layers(timed: Sequence[Timed]) -> Figure:
    """Milliseconds per decoding step against layers run, with the affine fit."""
    with figure_style():
        figure = new_figure(3.6)
        axes = figure.add_subplot()
        styles = looks(one.route.family for one in timed)
        for one in timed:
            layers, look = one.route.cost_layers, styles[one.route.family]
            if not one.speed.is_noisy:
                ends = [one.yardstick_ms / speed for speed in (one.speed.high, one.speed.low)]
                axes.plot([layers, layers], ends, color=GRAY, linewidth=1, zorder=3)
            # Hollow, so that routes of equal depth, which take about the same time, do not hide each other.
            axes.plot(layers, one.ms, marker=look.marker, color=look.color, zorder=4, **_HOLLOW)
        fit, n_layers = affine_fit(timed), timed[0].route.n_layers
        if fit is not None:
            x = np.array([0.0, n_layers])
            axes.plot(x, fit.base_ms + fit.layer_ms * x, color=GRAY, linestyle="--", linewidth=1.2, zorder=2)
        axes.set(xlim=(0, n_layers * 1.03), ylim=(0, None))
        axes.set(xlabel="layers run for a response token", ylabel="measured time per decoding step (ms)")
        headed(figure, "Measured time of a decoding step, by layers run" if fit is None else str(fit))
        _legend(figure, axes, styles.values())
    return figure


def _legend(figure: Figure, axes: Axes, families: Iterable[Look]) -> None:
    named = axes.get_legend_handles_labels()[0]
    points = [replace(look, line="none") for look in families]
    look_key(figure, points, also=named, n_columns=min(4, len(points) + len(named)), handletextpad=0.4)
