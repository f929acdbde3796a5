"""Names beside the points of a plot, where they cover neither each other nor what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depthdial.report.style import GRAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_POINTS = 8  # font size
_HALO_PIXELS = 18

Pixels = tuple[float, float]


def place_labels(axes: Axes, points: Sequence[Pixels], texts: Sequence[str], *, avoid: Sequence[Pixels] = ()) -> None:
    """Write a label beside each point, at whichever of some places it covers least.

    A label that had to go further off is tied to its point by a thin line.

    Args:
        points: (x, y) in the units of the axes, one for each text.
        avoid: further (x, y) that labels should not cover, such as the points of a curve.
    """
    if not points:
        return
    sheet = _Sheet.of(axes, points, avoid)
    for point, text in zip(points, texts, strict=True):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=_LABEL_POINTS, zorder=6)
        own = sheet.pixels(point)
        best = min(_PLACES, key=lambda place, note=note, own=own: sheet.badness(note, own, place))
        sheet.keep(note, own, best)
        if best.is_far:
            line = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, xytext=(best.dx, best.dy), textcoords="offset points", arrowprops=line, zorder=3)


def between(start: Pixels, end: Pixels, n: int = 10) -> list[Pixels]:
    """Points along a line, for `place_labels` to avoid."""
    steps = [i / (n - 1) for i in range(n)]
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in steps]


@dataclass(frozen=True)
class _Place:
    """Where a label stands: its offset from the point, in typographic points, and which part of it is there."""

    dx: float
    dy: float
    across: str
    up: str
    is_far: bool

    def put(self, note: Any) -> None:
        note.set(position=(self.dx, self.dy), horizontalalignment=self.across, verticalalignment=self.up)


@dataclass(frozen=True)
class _Sheet:
    """What is drawn already, in pixels."""

    axes: Any
    renderer: Any
    pixels_per_point: float
    marks: list[Pixels]
    thin: list[Pixels]
    labels: list[Any]

    @classmethod
    def of(cls, axes: Axes, points: Sequence[Pixels], avoid: Sequence[Pixels]) -> _Sheet:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()  # the layout must stand before places can be compared
        sheet = cls(axes, FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72, [], [], [])
        sheet.marks.extend(sheet.pixels(point) for point in points)
        sheet.thin.extend(sheet.pixels(point) for point in avoid)
        return sheet

    def pixels(self, point: Pixels) -> Pixels:
        x, y = self.axes.transData.transform(point)
        return float(x), float(y)

    def badness(self, note: Any, own: Pixels, place: _Place) -> float:
        """About how many square pixels a label would cover there, and how far down the list of places it is."""
        from matplotlib.transforms import Bbox

        place.put(note)
        box, frame = note.get_window_extent(self.renderer), self.axes.get_window_extent(self.renderer)
        others = [mark for mark in self.marks if abs(mark[0] - own[0]) + abs(mark[1] - own[1]) > _HALO_PIXELS / 2]
        halos = [Bbox.from_bounds(x - 9, y - 9, _HALO_PIXELS, _HALO_PIXELS) for x, y in others]
        thick = [*self.labels, *halos]
        covered = sum(_overlap(box, other) for other in thick) + 12.0 * sum(box.contains(*p) for p in self.thin)
        outside = box.width * box.height - _overlap(box, frame)
        crossed = sum(any(other.contains(*p) for other in thick) for p in self._leader(own, place))
        return covered + 3 * outside + 25.0 * crossed + 0.5 * _PLACES.index(place)

    def keep(self, note: Any, own: Pixels, place: _Place) -> None:
        place.put(note)
        self.labels.append(note.get_window_extent(self.renderer))
        self.thin.extend(self._leader(own, place))

    def _leader(self, own: Pixels, place: _Place) -> list[Pixels]:
        """Along the line that ties a label to its point; nothing for a label beside it."""
        end = (own[0] + place.dx * self.pixels_per_point, own[1] + place.dy * self.pixels_per_point)
        return between(own, end)[2:] if place.is_far else []


_NEAR = ((6, 0), (-6, 0), (0, 6), (0, -6), (5, 5), (-5, 5), (5, -5), (-5, -5))
# Aslant, for a line straight up or across would pass for an interval's bar.
_FAR = tuple(
    (far * dx * right, far * dy * above)
    for far in (1, 1.7, 2.6, 3.6)
    for dx, dy in ((11, 11), (14, 7), (7, 14))
    for right in (1, -1)
    for above in (1, -1)
)
_ACROSS, _UP = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}
_PLACES = tuple(
    _Place(dx, dy, _ACROSS[(dx > 0) - (dx < 0)], _UP[(dy > 0) - (dy < 0)], is_far)
    for offsets, is_far in ((_NEAR, False), (_FAR, True))
    for dx, dy in offsets
)


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0
