"""The two figures: tokens a second by peer and rows, and measured time against quality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers.peer import REFERENCE
from benchmarks.peers.roster import CUT
from depthdial.report.kit.labels import place_labels
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
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Look:
    label: str
    color: str
    marker: str
    prefixes: tuple[str, ...] = ()


_KINDS = (
    _Look("Depthdial, bf16", PURPLE, "h", ("engine-bf16",)),
    _Look("Depthdial", BLUE, "o", ("dial", "engine")),
    _Look("Depthdial, elastic adapter", SKY, "p", ("elastic",)),
    _Look("transformers", BLACK, "P", ("hf-", CUT)),
    _Look("llama.cpp", ORANGE, "s", ("llama",)),
    _Look("fewer bits", GREEN, "^", ("bf16", "int8")),
    _Look("smaller model", VERMILION, "D", ("gemma",)),
    _Look("tide-inference", GRAY, "v", ("tide",)),
)
_OTHER = _Look("other", GRAY, "X")
# The line that joins the depths of a way to dial them, and its name in the key; a colour of its own needs none.
_WAYS = {"dial": ("-", "dd.generate"), "engine": ("--", "dd.Engine"), "elastic": ("-", ""), "engine-bf16": ("--", "")}
_METRICS = (
    ("kl", "KL to the full fp32 model (nats)"),
    ("agreement", "Greedy agreement with it"),
    ("bits_per_byte", "Bits a byte of plain text"),
    ("rouge_l", "ROUGE-L of answers"),
)


def _kind(name: str) -> _Look:
    return next((look for look in _KINDS if name.startswith(look.prefixes)), _OTHER)


def _in_quality(name: str, scored_as: str | None) -> bool:
    """A peer with a quality of its own, or Depthdial at a depth; those that differ in time alone are in the other figure."""
    return (scored_as == name and name != CUT) or name.startswith(("dial@", "engine@", "dial-full", "engine-full"))


def draw_speed(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """A panel for each number of rows: a bar for each peer, p20 to p80 as its whisker, the ratio to HF eager at its end."""
    sizes = sorted({row["rows"] for row in rows})
    shown = {size: [row for row in rows if row["rows"] == size] for size in sizes}
    heights = [1 + len(shown[size]) for size in sizes]
    with figure_style():
        figure = new_figure(0.9 + 0.17 * sum(heights))
        panels = np.atleast_1d(figure.subplots(len(sizes), 1, height_ratios=heights))
        for axes, size in zip(panels, sizes, strict=True):
            _bars(axes, shown[size])
            axes.set_title(f"{size} row{'s' * (size > 1)}")
        panels[-1].set_xlabel("tokens a second, whole requests (whiskers: p20 to p80; numbers: ratio to hf-eager)")
        headed(figure, "Peers side by side, in turns")
        return save_figure(figure, path)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    speeds = np.array([[row["tokens_per_sec"][p] for p in ("p20", "p50", "p80")] for row in rows])
    places = np.arange(len(rows))
    reach = np.abs(speeds[:, [0, 2]] - speeds[:, [1]]).T
    axes.barh(places, speeds[:, 1], color=[_kind(row["peer"]).color for row in rows], alpha=0.85, height=0.7)
    axes.errorbar(speeds[:, 1], places, xerr=reach, fmt="none", ecolor=GRAY, elinewidth=0.8, capsize=2)
    for place, row in zip(places, rows, strict=True):
        if row["over_reference"] is not None and row["peer"] != REFERENCE:
            text = f" {row['over_reference']['p50']:.2f}×"
            axes.text(speeds[place, 2], place, text, va="center", ha="left", fontsize=7)
    axes.set_yticks(places, [row["peer"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)


def draw_quality(
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    scored_as: Mapping[str, str | None],
    depths: Sequence[str],
    path: Path,
) -> Path | None:
    """Measured ms a token against four qualities, a row of panels for each number of rows; None where nothing is scored."""
    timed = [row for row in rows if row["ms_in_turns"] is not None and scored_as[row["peer"]] in scores]
    shown = [row for row in timed if _in_quality(row["peer"], scored_as[row["peer"]])]
    sizes = sorted({row["rows"] for row in shown})
    if not sizes:
        return None
    with figure_style():
        figure = new_figure(0.8 + 2.9 * len(sizes), width_in=13.0)
        panels = figure.subplots(len(sizes), len(_METRICS), squeeze=False)
        named: list[tuple[Axes, list[tuple[str, float, float]]]] = []
        for line, size in zip(panels, sizes, strict=True):
            for axes, (metric, label) in zip(line, _METRICS, strict=True):
                found = [
                    (row["peer"], row["ms_in_turns"], score)
                    for row in shown
                    if row["rows"] == size and (score := scores[str(scored_as[row["peer"]])][metric]) is not None
                ]
                points = [(name, ms, score["mean"]) for name, ms, score in found]
                for name, ms, score in found:
                    axes.vlines(ms, score["low"], score["high"], _kind(name).color, linewidth=0.8, alpha=0.35, zorder=1)
                _points(axes, points, depths)
                if metric == "kl":
                    axes.set_yscale("symlog", linthresh=1e-3)
                    axes.set_ylim(-5e-4, 1.5 * axes.get_ylim()[1])
                    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.set_title(label, fontsize=8)
                axes.set_xlabel(f"ms a token, {size} row{'s' * (size > 1)}")
                named.append((axes, points))
        _key(figure, [row["peer"] for row in shown])
        headed(
            figure,
            "Time against quality: a dialled depth, fewer bits, or a smaller model (bars: 95% intervals)",
        )
        for axes, points in named:
            names = {name for name, *_ in points}
            told = [one for one in points if not _is_said(one[0], names)]
            place_labels(axes, [(ms, value) for _, ms, value in told], [_short(n) for n, *_ in told], size=6)
        return save_figure(figure, path)


def _key(figure: Figure, peers: Sequence[str]) -> None:
    """What colours and markers mean, and the lines that join depths."""
    present = {_kind(peer) for peer in peers}
    looks = [kind for kind in (*_KINDS, _OTHER) if kind in present]
    handles = [Line2D([], [], color=look.color, marker=look.marker, linestyle="none", label=look.label) for look in looks]
    ways = [
        (line, told) for way, (line, told) in _WAYS.items() if told and any(peer.startswith(f"{way}@") for peer in peers)
    ]
    handles += [Line2D([], [], color=BLUE, linestyle=line, linewidth=1, label=told) for line, told in ways]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _is_said(name: str, beside: Collection[str]) -> bool:
    """Whether the same depth through `dd.generate`, at the same height, has the name already."""
    return name.startswith("engine") and name.replace("engine", "dial", 1) in beside


def _short(name: str) -> str:
    """The depth of one that can be dialled: who it is says its colour."""
    return "full" if name.endswith("-full") else name.rpartition("@")[2]


def _points(axes: Axes, points: Sequence[tuple[str, float, float]], depths: Sequence[str]) -> None:
    """Points; the depths of a way to dial them are joined, shallow to full."""
    for name, ms, value in points:
        look = _kind(name)
        axes.plot(ms, value, look.marker, color=look.color, alpha=0.85, linestyle="none")
    known = {name: (ms, value) for name, ms, value in points}
    for way, (line, _) in _WAYS.items():
        names = [*(f"{way}@{depth}" for depth in depths), f"{'dial' if way == 'elastic' else way}-full"]
        joined = [known[name] for name in names if name in known]
        if len(joined) > 1:
            axes.plot(*zip(*joined, strict=True), line, color=_kind(way).color, linewidth=1, zorder=1)
    axes.margins(x=0.16, y=0.14)  # room for names above the best
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=6)
