"""How the loss fell while a route, or a family of them, was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import figure_style, headed, log_heights, new_figure, save_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSS = "loss/"
_MARKERS = "os^vDPXhpd"


def plot_training(record: Mapping[str, Any], path: Path) -> Path:
    """Draw a training record's loss and save it (.png, .svg, .pdf)."""
    figure = draw_training(record)
    with figure_style():
        return save_figure(figure, path)


def draw_training(record: Mapping[str, Any]) -> Figure:
    """The loss of each route against optimizer steps (log scale); means since the entry before."""
    import matplotlib

    history = record["history"]
    names = list(record["response_tokens_by_route"])
    is_kl = record["settings"]["distill"]
    with figure_style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(names), 2)))
        for i, name in enumerate(names):
            seen = [(entry["step"], entry[_LOSS + name]) for entry in history if entry.get(_LOSS + name, 0) > 0]
            if seen:
                steps, losses = zip(*seen, strict=True)
                marker = _MARKERS[i % len(_MARKERS)]
                axes.plot(steps, losses, color=colors[i], marker=marker, markersize=3, label=shortened(name))
        if any(line.get_xdata() is not None for line in axes.lines):
            log_heights(axes)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("KL to the full model (nats per token)" if is_kl else "cross-entropy (nats per token)")
        tokens = record["response_tokens"]
        headed(figure, f"Training loss by route: {record['steps']:,} steps, {tokens:,} response tokens over all routes")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)))
    return figure
