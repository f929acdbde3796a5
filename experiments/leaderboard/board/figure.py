"""The board as one figure: agreement over measured time, a line for each family, in two panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    figure_style,
    headed,
    new_figure,
    save_figure,
)

from .tables import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOICES = ("greedy", "knapspec", "pudding", "block-influence", "angular", "uls", "unified", "rls", "ee")
BEYOND = ("greedy", "gates", "elastic", "controller", "bf16", "int8-dynamic", "int8-torchao")
_LOOKS = {
    "greedy": (BLACK, "o", "-"),
    "knapspec": (VERMILION, "s", "-"),
    "pudding": (PURPLE, "D", "--"),
    "block-influence": (BLUE, "^", "-"),
    "angular": (SKY, "v", "-"),
    "uls": (GREEN, "P", "-"),
    "unified": (ORANGE, "X", "--"),
    "rls": (GRAY, "*", ":"),
    "ee": (YELLOW, "p", "-"),
    "gates": (GRAY, "*", ":"),
    "elastic": (BLUE, "s", "-"),
    "controller": (PURPLE, "D", "--"),
    "bf16": (VERMILION, "^", "-"),
    "int8-dynamic": (ORANGE, "v", "-"),
    "int8-torchao": (GREEN, "P", "-"),
}
BATCH = 1
_SLOWEST = 1.2


def draw(document: Mapping[str, Any], path: Path) -> Path:
    """Write the figure."""
    with figure_style():
        figure = new_figure(3.7)
        headed(figure, f"Agreement with the full model at measured time, {document['rows']} rows of Alpaca, one row a step")
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, document, CHOICES, "Choices of layers, fp32, untouched weights", "upper left")
        _panel(right, document, BEYOND, "Training, choosing by input, fewer bits", "lower right")
        left.set_ylabel("agreement, token by token")
        return save_figure(figure, path)


def _panel(axes: Axes, document: Mapping[str, Any], names: Sequence[str], title: str, place: str) -> None:
    slowest = []
    for name in names:
        own = [one for one in document["points"] if one["family"] == name and one["agreement"] is not None]
        if not own:
            continue
        full = [one for one in document["points"] if one["config"] == "full"]
        if all(one[f"time_{BATCH}"] > _SLOWEST for one in own):  # it would squeeze all others together
            named = f"{LABELS[name]}: {own[0]['agreement'][0]:.2f} at {own[0][f'time_{BATCH}']:.1f}"
            axes.plot([], [], color=_LOOKS[name][0], marker=_LOOKS[name][1], linestyle="", label=named)
            continue
        shown = sorted([*(full if _with_full(name) else []), *own], key=lambda one: one[f"time_{BATCH}"])
        times = [one[f"time_{BATCH}"] for one in shown]
        slowest.append(times[-1])
        means = [one["agreement"][0] for one in shown]
        reach = [
            [one["agreement"][0] - one["agreement"][1] for one in shown],
            [one["agreement"][2] - one["agreement"][0] for one in shown],
        ]
        colour, marker, line = _LOOKS[name]
        axes.errorbar(
            times,
            means,
            yerr=reach,
            color=colour,
            marker=marker,
            linestyle=line,
            label=LABELS[name],
            elinewidth=0.8,
            markersize=4,
        )
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("time of a step, share of full fp32")
    axes.set_ylim(0, 1.04)
    axes.set_xlim(0.25, max([1.0, *slowest]) + 0.04)
    axes.legend(loc=place, fontsize=7, handlelength=2.4)


def _with_full(name: str) -> bool:
    return name not in ("bf16", "int8-dynamic", "int8-torchao")
