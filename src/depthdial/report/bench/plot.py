"""Figures of a latency model: time of a step against layers with the bandwidth line, and throughput against rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.latency.cells import HF_STEP, STEP, Cell
from depthdial.latency.model import LatencyModel
from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    figure_style,
    headed,
    log_heights,
    new_figure,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS, _MARKERS = (BLACK, BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY), "oDs^vph"
_HF = {"color": GRAY, "marker": "x", "markersize": 6, "markeredgewidth": 1.6, "zorder": 5}


def draw_latency(latency: LatencyModel) -> Figure:
    """Milliseconds of a decoding step of the fewest rows against layers run, and tokens per second against rows."""
    with figure_style():
        figure = new_figure(3.4)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
        _draw_layers(left, latency)
        _draw_rows(right, latency)
        headed(figure, f"{latency.model}, {latency.dtype} on {latency.device}: decoding steps as measured")
    return figure


def _draw_layers(axes: Axes, latency: LatencyModel) -> None:
    rows = latency.measured_rows()[0]
    contexts, parts = _contexts(latency, rows), latency.parts(rows)
    x = np.linspace(0, latency.n_layers, 2)
    for place, context in enumerate(contexts):
        color = _COLORS[place % len(_COLORS)]
        axes.plot(x, 1e3 * (parts.fixed_sec + x * parts.layer(context)), color=color, linewidth=1.1, alpha=0.7)
        cells = _cells(latency, STEP, rows=rows, context_tokens=context)
        layers = [len(latency.routes[cell.route]) for cell in cells]
        _points(axes, layers, cells, color, _MARKERS[place % len(_MARKERS)], f"{context} tokens in sight")
    theirs = [1e3 * cell.p50_sec for cell in _cells(latency, HF_STEP, rows=rows, context_tokens=contexts[0])]
    if theirs:
        axes.plot([latency.n_layers] * len(theirs), theirs, linestyle="none", label="HF generate", **_HF)
    each = latency.sizes.step_bytes(tuple(range(latency.n_layers)), rows, 0) - latency.sizes.head_bytes
    reading = latency.sizes.head_bytes + x / latency.n_layers * each
    bandwidth = latency.ceilings.bandwidth_bytes_per_sec
    axes.plot(
        x, 1e3 * reading / bandwidth, color=GRAY, linestyle="--", linewidth=1.2, label=f"bytes at {bandwidth / 1e9:.0f} GB/s"
    )
    axes.set(xlim=(0, latency.n_layers * 1.04), ylim=(0, 1.12 * axes.get_ylim()[1]))
    axes.set(xlabel="layers run", ylabel=f"time of a decoding step (ms), batch {rows}")
    axes.legend(loc="upper left", handlelength=1.6)


def _draw_rows(axes: Axes, latency: LatencyModel) -> None:
    rows, context = latency.measured_rows(), _contexts(latency, latency.measured_rows()[0])[0]
    for place, name in enumerate(latency.routes):
        color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
        cells = _cells(latency, STEP, route=name, context_tokens=context)
        each = [cell.rows / cell.p50_sec for cell in cells]
        axes.plot([cell.rows for cell in cells], each, color=color, marker=marker, label=_label(latency, name))
    bounds = [n / latency.bound_sec(None, n, context) for n in rows]
    axes.plot(rows, bounds, color=GRAY, linestyle="--", linewidth=1.2, label="ceilings, all layers")
    theirs = _cells(latency, HF_STEP, context_tokens=context)
    if theirs:
        axes.plot(
            [cell.rows for cell in theirs],
            [cell.rows / cell.p50_sec for cell in theirs],
            linestyle=":",
            label="HF generate",
            **_HF,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, [str(n) for n in rows])
    axes.minorticks_off()
    log_heights(axes)
    low, high = axes.get_ylim()
    share = min(0.05 + 0.055 * len(axes.get_legend_handles_labels()[1]), 0.6)  # of the height, for the key
    axes.set_ylim(low, high * (high / low) ** (share / (1 - share)))
    axes.set(xlabel=f"rows, {context} tokens in sight", ylabel="tokens per second")
    axes.legend(loc="upper left", handlelength=1.8, fontsize=7.5)


def _label(latency: LatencyModel, name: str) -> str:
    """A route, and how many layers it runs where its name does not say."""
    n = len(latency.routes[name])
    return name if name.endswith(f":{n}") else f"{shortened(name, 16)} ({n})"


def _points(axes: Axes, x: Sequence[float], cells: Sequence[Cell], color: str, marker: str, label: str) -> None:
    """Medians in milliseconds with bars from p20 to p80."""
    y = 1e3 * np.array([cell.p50_sec for cell in cells])
    reach = 1e3 * np.array([[one.p50_sec - one.p20_sec, one.p80_sec - one.p50_sec] for one in cells]).T
    look: dict[str, Any] = {"linestyle": "none", "markersize": 5, "elinewidth": 1, "capsize": 2}
    axes.errorbar(x, y, yerr=reach, color=color, marker=marker, label=label, **look)


def _contexts(latency: LatencyModel, rows: int) -> list[int]:
    return sorted({cell.context_tokens for cell in _cells(latency, STEP, rows=rows)})


def _cells(latency: LatencyModel, kind: str, **wanted: Any) -> list[Cell]:
    found = [c for c in latency.cells if c.kind == kind and all(getattr(c, name) == value for name, value in wanted.items())]
    return sorted(found, key=lambda cell: cell.rows)
