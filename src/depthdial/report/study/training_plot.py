"""How the loss fell while a route, or a family of them, was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import figure_style, headed, log_heights, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "os^vDPXhpd"


def draw_training(record: Mapping[str, Any]) -> Figure:
    """The loss of each route against optimizer steps (log scale); means since the entry before."""
    import matplotlib

    names = list(record["response_tokens_by_route"])
    with figure_style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(names), 2)))
        for i, name in enumerate(names):
            seen = [(entry["step"], loss) for entry in record["history"] if (loss := entry.get(f"loss/{name}", 0)) > 0]
            if seen:
                look = {"color": colors[i], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 3}
                axes.plot(*zip(*seen, strict=True), **look, label=shortened(name))
        if axes.lines:
            log_heights(axes)
            figure.legend(loc="outside lower center", ncols=min(5, len(axes.lines)))
        what = "KL to the full model" if record["settings"]["distill"] else "cross-entropy"
        axes.set(xlabel="optimizer step", ylabel=f"{what} (nats per token)")
        tokens = record["response_tokens"]
        headed(figure, f"Training loss by route: {record['steps']:,} steps, {tokens:,} response tokens over all routes")
    return figure
