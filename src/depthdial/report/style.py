"""How figures look: colours, markers and line styles that survive colour blindness and grayscale print; how they are saved.

Figures are made with matplotlib's objects, never with pyplot, and its settings are changed only inside `figure_style`: a
report leaves no trace in the process that calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.errors import InputError
from depthdial.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 6.9  # the text width of a page, so that a font size below is the size in print
PNG_DPI = 200
_SETTINGS: dict[str, Any] = {
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
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GRAY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#666666",
)
SKIPPED = "#ececec"


@dataclass(frozen=True)
class Look:
    """How one family of routes is drawn and called."""

    label: str
    color: str
    marker: str
    line: Any


_LOOKS: dict[str, Look] = {
    "full": Look("full model", BLACK, "P", "none"),
    "uls": Look("ULS, uniform skipping", BLUE, "o", "-"),
    "unified": Look("unified skipping", SKY, "D", (0, (6, 1, 1, 1, 1, 1))),
    "rls": Look("RLS, random skipping", GREEN, "^", "-."),
    "rls-wo1": Look("RLS wo/1", PURPLE, "v", ":"),
    "ee": Look("EE, early exit", VERMILION, "s", "--"),
    "listed": Look("listed layers", GRAY, "X", "none"),
}
# Searched families come with names of their own; the first gets the first look.
_SEARCHED = ((BLACK, "*", "-"), (ORANGE, "h", (0, (4, 1))), (GRAY, "p", (0, (2, 1))))


def looks(families: Sequence[str]) -> dict[str, Look]:
    """A look for each family, told apart by colour, marker and line style."""
    searched = [family for family in families if family not in _LOOKS]
    found = {family: _LOOKS[family] for family in families if family in _LOOKS}
    for i, family in enumerate(searched):
        found[family] = Look(f"{shortened(family)}, searched", *_SEARCHED[i % len(_SEARCHED)])
    return found


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
    """Write a figure as PNG (200 dpi), SVG (text as text) or PDF, the same bytes for the same figure.

    Raises:
        InputError: if the name has another ending, or the file cannot be written.
    """
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    kind = path.suffix.lower()
    if kind not in metadata:
        raise InputError(f"Cannot draw into {path.name}: give a file that ends in .png, .svg or .pdf.")

    def write(part: Path) -> None:
        with figure_style():
            figure.savefig(part, format=kind[1:], dpi=PNG_DPI, metadata=metadata[kind])

    return write_atomically(path, write)


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], *, avoid: Any = ()) -> None:
    """Write a label beside each point, where it covers the fewest other labels, points and curves.

    Args:
        points: (x, y) in the units of the axes, one for each text.
        avoid: further (x, y) that labels should not cover, such as the points of a curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout must stand before places can be compared
    renderer = FigureCanvasAgg(figure).get_renderer()
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(list(points))] if points else []
    curve = axes.transData.transform(list(avoid)) if len(avoid) else []
    frame, taken = axes.get_window_extent(renderer), list(marks)
    for (x, y), text in zip(points, texts, strict=True):
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.4},
        )
        best: tuple[float, tuple[float, float], Any] | None = None
        for rank, (dx, dy, across, up) in enumerate(_OFFSETS):
            note.set(position=(dx, dy), horizontalalignment=across, verticalalignment=up)
            box = note.get_window_extent(renderer)
            covered = sum(_overlap(box, other) for other in taken)
            covered += 12.0 * sum(box.contains(*place) for place in curve)
            outside = box.width * box.height - _overlap(box, frame)
            badness = covered + 3 * outside + 0.5 * rank
            if best is None or badness < best[0]:
                best = (badness, (dx, dy), (across, up))
        assert best is not None
        note.set(position=best[1], horizontalalignment=best[2][0], verticalalignment=best[2][1])
        taken.append(note.get_window_extent(renderer))


_OFFSETS = tuple(
    (dx * far, dy * far, across, up)
    for far in (1, 2, 3.2)
    for dx, dy, across, up in (
        (6, 0, "left", "center"),
        (-6, 0, "right", "center"),
        (0, 6, "center", "bottom"),
        (0, -6, "center", "top"),
        (5, 5, "left", "bottom"),
        (-5, 5, "right", "bottom"),
        (5, -5, "left", "top"),
        (-5, -5, "right", "top"),
    )
)


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0
