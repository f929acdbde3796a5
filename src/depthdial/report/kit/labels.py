"""Names beside the points of a plot, where they cover neither each other nor what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.report.kit.style import GRAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_POINTS = 8  # font size
_HALO_PIXELS = 9  # kept free around every other point
_SAME_PIXELS = 5  # points that lie on each other share their surroundings

Point = tuple[float, float]


def place_labels(axes: Axes, points: Sequence[Point], texts: Sequence[str], *, avoid: Sequence[Point] = ()) -> None:
    """Write a label beside each point, at whichever of some places it covers least.

    A label that had to go further off is tied to its point by a thin line.

    Args:
        points: (x, y) in the units of the axes, one for each text.
        avoid: further (x, y) that labels should not cover, such as the points of a curve.
    """
    if not points:
        return
    sheet = _Sheet.of(axes, points, avoid)
    for number, (point, text) in enumerate(zip(points, texts, strict=True)):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=_LABEL_POINTS, zorder=6)
        extent = note.get_window_extent(sheet.renderer)
        size = np.array([extent.width, extent.height])
        best = min(_PLACES, key=lambda place, number=number, size=size: sheet.badness(number, size, place))
        note.set(position=(best.dx, best.dy), horizontalalignment=best.across, verticalalignment=best.up)
        sheet.keep(number, size, best)
        if best.is_far:
            line = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, xytext=(best.dx, best.dy), textcoords="offset points", arrowprops=line, zorder=3)


def between(start: Point, end: Point, n: int = 10) -> list[Point]:
    """Points along a line, for `place_labels` to avoid."""
    steps = [i / (n - 1) for i in range(n)]
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in steps]


@dataclass(frozen=True)
class _Place:
    """Where a label stands: its offset from the point, in typographic points."""

    dx: float
    dy: float
    is_far: bool

    @property
    def across(self) -> str:
        return {-1: "right", 0: "center", 1: "left"}[_sign(self.dx)]

    @property
    def up(self) -> str:
        return {-1: "top", 0: "center", 1: "bottom"}[_sign(self.dy)]


@dataclass
class _Sheet:
    """What is drawn already, in pixels. Boxes are rows of (left, bottom, right, top).

    Attributes:
        frame: (1, 4), the axes.
        marks: (n_points, 2); `thin`: (n, 2), points on lines and curves; `leaders`: (n, 2), those on labels' own lines.
        labels: (n_labels, 4).
    """

    renderer: Any
    pixels_per_point: float
    frame: np.ndarray
    marks: np.ndarray
    thin: np.ndarray
    labels: np.ndarray
    leaders: np.ndarray

    @classmethod
    def of(cls, axes: Axes, points: Sequence[Point], avoid: Sequence[Point]) -> _Sheet:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()  # the layout must stand before places can be compared
        renderer = FigureCanvasAgg(figure).get_renderer()
        frame = np.array([axes.get_window_extent(renderer).extents])
        marks = axes.transData.transform(np.reshape(np.array(points, dtype=float), (-1, 2)))
        thin = axes.transData.transform(np.reshape(np.array(avoid, dtype=float), (-1, 2)))
        return cls(renderer, figure.dpi / 72, frame, marks, thin, np.empty((0, 4)), np.empty((0, 2)))

    def badness(self, number: int, size: np.ndarray, place: _Place) -> float:
        """About how many square pixels a label would cover there, and how far down the list of places it is."""
        own, box, leader = self.marks[number], self._box(number, size, place), self._leader(number, place)
        others = self.marks[np.abs(self.marks - own).sum(axis=1) > _SAME_PIXELS]
        thick = np.vstack([self.labels, np.hstack([others - _HALO_PIXELS, others + _HALO_PIXELS])])
        covered = _overlaps(box, thick).sum() + 12 * _inside(self.thin, box[None]).sum()
        outside = size.prod() - _overlaps(box, self.frame).sum()
        meets = np.abs(leader[:, None] - self.leaders[None]).sum(axis=2) < 3
        crossed = _inside(leader, thick).any(axis=1).sum() + meets.any(axis=1).sum()
        return float(covered + 3 * outside + 60 * crossed + 0.5 * _PLACES.index(place))

    def keep(self, number: int, size: np.ndarray, place: _Place) -> None:
        leader = self._leader(number, place)
        self.labels = np.vstack([self.labels, self._box(number, size, place)])
        self.leaders, self.thin = np.vstack([self.leaders, leader]), np.vstack([self.thin, leader])

    def _box(self, number: int, size: np.ndarray, place: _Place) -> np.ndarray:
        at = self.marks[number] + self.pixels_per_point * np.array([place.dx, place.dy])
        corner = at + size * (np.array([_sign(place.dx), _sign(place.dy)]) - 1) / 2
        return np.concatenate([corner, corner + size])

    def _leader(self, number: int, place: _Place) -> np.ndarray:
        """(n, 2) along the line that ties a label to its point; none for a label beside it."""
        if not place.is_far:
            return np.empty((0, 2))
        steps = np.linspace(0.2, 1.0, 20)[:, None]
        return self.marks[number] + steps * self.pixels_per_point * np.array([place.dx, place.dy])


_NEAR = ((6, 0), (-6, 0), (0, 6), (0, -6), (5, 5), (-5, 5), (5, -5), (-5, -5))
# Aslant, for a line straight up or across would pass for an interval's bar.
_FAR = tuple(
    (far * dx * right, far * dy * above)
    for far in (1, 1.7, 2.6, 3.6)
    for dx, dy in ((11, 11), (14, 7), (7, 14))
    for right in (1, -1)
    for above in (1, -1)
)
_PLACES = tuple(_Place(dx, dy, is_far) for offsets, is_far in ((_NEAR, False), (_FAR, True)) for dx, dy in offsets)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) areas that a box (4,) shares with each of (n, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n_points, n_boxes): whether a point lies in a box."""
    inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
    return inside[:, :, 0] & inside[:, :, 1]
