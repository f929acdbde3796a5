"""How figures look: colours, markers and line styles that survive colour blindness and grayscale print; how they are saved.

Figures are made with matplotlib's objects, never with pyplot, and its settings are changed only inside `figure_style`: a
report leaves no trace in the process that calls it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.errors import InputError
from depthdial.files import write_atomically
from depthdial.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 6.9  # the text width of a page, so that a font size below is the size in print
_PNG_DPI = 200
# What a file would say of the moment and the library, left out so that a figure has the same bytes every time.
_UNSAVED = {".png": ["Software"], ".svg": ["Date", "Creator"], ".pdf": ["CreationDate", "Creator", "Producer"]}
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "figure.titlesize": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.parse_math": False,  # a route's or a task's name may hold a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "depthdial",
}
# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW = "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, GRAY, SKIPPED = "#0072B2", "#D55E00", "#CC79A7", "#666666", "#ececec"
_RANGES = {
    **dict.fromkeys(("rouge_1", "rouge_2", "rouge_l", "agreement"), (0.0, 1.0)),
    **dict.fromkeys(("cosine_final", "cosine_intermediate"), (-1.0, 1.0)),
}


@dataclass(frozen=True)
class Look:
    """How one family of routes is drawn and called."""

    label: str
    color: str
    marker: str
    line: Any

    @property
    def drawn(self) -> dict[str, Any]:
        """For `axes.plot`."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}


EDGE = {"markeredgecolor": BLACK, "markeredgewidth": 0.4}
_LOOKS: dict[str, Look] = {
    "full": Look("full model", BLACK, "P", "none"),
    "uls": Look("ULS, uniform skipping", BLUE, "o", "-"),
    "unified": Look("unified skipping", SKY, "D", (0, (6, 1, 1, 1, 1, 1))),
    "rls": Look("RLS, random skipping", GREEN, "^", "-."),
    "rls-wo1": Look("RLS wo/1", PURPLE, "v", ":"),
    "ee": Look("EE, early exit", VERMILION, "s", "--"),
    "elastic": Look("elastic weights", ORANGE, "p", (0, (4, 1))),
    "listed": Look("listed layers", GRAY, "X", "none"),
}
# Searched families come with names of their own; the first gets the first look.
_SEARCHED = ((BLACK, "h", "-"), (YELLOW, "H", (0, (3, 1, 1, 1))), (GRAY, "d", (0, (2, 1))))


def looks(families: Iterable[str]) -> dict[str, Look]:
    """A look for each family, told apart by colour, marker and line style; searched families come last."""
    found = {family: _LOOKS.get(family) for family in families}
    searched = [family for family, look in found.items() if look is None]
    return {family: look for family, look in found.items() if look is not None} | {
        family: Look(f"{shortened(family)}, searched", *_SEARCHED[i % len(_SEARCHED)]) for i, family in enumerate(searched)
    }


def family_of(route_name: str) -> str:
    """The family that a route's name stands for: what precedes the colon; `listed` for layer lists and `drop:`."""
    prefix, colon, _ = route_name.partition(":")
    return prefix if prefix == "full" or (colon and prefix != "drop") else "listed"


def shortened(name: str, most: int = 22) -> str:
    """A name that fits a legend."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


@contextmanager
def figure_style() -> Iterator[None]:
    """The settings under which a figure is drawn and saved; the caller's come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style file must not change a report
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure; to be called inside `figure_style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG (200 dpi), SVG (text as text) or PDF, the same bytes for the same figure."""
    kind = path.suffix.lower()
    if kind not in _UNSAVED:
        raise InputError(f"Cannot draw into {path.name}: give a file that ends in .png, .svg or .pdf.")

    def write(part: Path) -> None:
        with figure_style():
            figure.savefig(part, format=kind[1:], dpi=_PNG_DPI, metadata=dict.fromkeys(_UNSAVED[kind]))
            figure.set_layout_engine("none")  # laid out once, so that a second format is the same picture

    return write_atomically(path, write)


def headed(figure: Figure, title: str) -> None:
    """Write the title over the whole figure, from its left edge: an axes' own title would start at the axis."""
    figure.suptitle(wrapped(title), x=0.01, ha="left")


def titled_key(figure: Figure, named: tuple[Sequence[Any], Sequence[str]], title: str, **look: Any) -> None:
    """A legend of the handles and labels `named` over the whole figure, under the figure's title.

    The title is the legend's own: the layout would put a title of the figure over the legend.
    """
    look = {"ncols": 2, "handlelength": 2.6, "columnspacing": 1.4, "title_fontsize": 10, "alignment": "left", **look}
    figure.legend(*named, loc="outside upper left", title=wrapped(title), **look)


def look_key(figure: Figure, looks: Sequence[Look], *, also: Sequence[Any] = (), n_columns: int = 4, **options: Any) -> None:
    """A legend of looks below the figure, and of the handles `also`."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look.drawn, **EDGE, label=look.label, linewidth=1.4, markersize=5) for look in looks]
    figure.legend(handles=[*handles, *also], loc="outside lower center", ncols=n_columns, **options)


def means_and_reach(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) means, and (2, n) how far the intervals reach below and above them; 0 where there is no interval."""
    means = np.array([interval.mean for interval in intervals], dtype=float)
    reach = [(interval.mean - interval.low, interval.high - interval.mean) for interval in intervals]
    return means, np.nan_to_num(np.maximum(np.reshape(reach, (-1, 2)).T, 0))


def wrapped(title: str) -> str:
    """A title in lines that fit the width of a figure."""
    return textwrap.fill(title, 92)


def keep_to_range(axes: Axes, metric: str) -> None:
    """Cut the y axis at what the metric can be: an interval of few sequences may reach beyond it."""
    low, high = _RANGES.get(metric, (-math.inf, math.inf))
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - 0.03), min(top, high + 0.03))


def log_heights(axes: Axes) -> None:
    """A log scale for y, numbered 0.1, 0.2, 0.5, 1 .. in plain figures."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axis = axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    axis.set_minor_formatter(NullFormatter())
