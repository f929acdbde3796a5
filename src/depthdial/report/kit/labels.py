"""Names beside the points of a plot, where they cover neither each other nor what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from depthdial.report.kit.style import GRAY, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HALO_PIXELS = 9  # kept free around every other point
_SAME_PIXELS = 5  # points that lie on each other share their surroundings
_STEP_PIXELS = 6  # between the places at which a drawn line is looked at
_NEAR = ((6, 0), (-6, 0), (0, 6), (0, -6), (5, 5), (-5, 5), (5, -5), (-5, -5))
# Aslant, for a line straight up or across would pass for an interval's bar.
_FAR = tuple(
    (far * dx * right, far * dy * above)
    for far in (1, 1.7, 2.6, 3.6)
    for dx, dy in ((11, 11), (14, 7), (7, 14))
    for right in (1, -1)
    for above in (1, -1)
)
_PLACES = np.array([*_NEAR, *_FAR])  # offsets in typographic points


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], *, size: float = 8) -> None:
    """Write a label beside each point, at whichever of some places it covers least of the lines and labels that are there.

    A label that had to go further off is tied to its point by a thin line. To be called when all else is drawn.

    Args:
        points: (x, y) in the units of the axes, one for each text.
        size: of the letters.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not points:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout must stand before places can be compared
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame, marks = np.array(axes.get_window_extent(renderer).extents), axes.transData.transform(np.array(points))
    thin, ties, labels = _drawn(axes), np.empty((0, 2)), np.empty((0, 4))
    for own, point, text in zip(marks, points, texts, strict=True):
        note = axes.annotate(shortened(text), point, xytext=(0, 0), textcoords="offset points", fontsize=size, zorder=6)
        extent = note.get_window_extent(renderer)
        extents = np.array([extent.width, extent.height])
        others = marks[np.abs(marks - own).sum(axis=1) > _SAME_PIXELS]
        thick = np.vstack([labels, np.hstack([others - _HALO_PIXELS, others + _HALO_PIXELS])])
        found = []
        for number, place in enumerate(_PLACES):
            offset = figure.dpi / 72 * place
            corner = own + offset + extents * (np.sign(place) - 1) / 2
            box = np.concatenate([corner, corner + extents])
            tie = own + np.linspace(0.2, 1.0, 20 if number >= len(_NEAR) else 0)[:, None] * offset
            covered = _overlaps(box, thick).sum() + 12 * _inside(thin, box[None]).sum()
            outside = extents.prod() - _overlaps(box, frame[None]).sum()
            meets = np.abs(tie[:, None] - ties[None]).sum(axis=2) < 3
            crossed = _inside(tie, thick).any(axis=1).sum() + meets.any(axis=1).sum()
            found.append((covered + 3 * outside + 60 * crossed + 0.5 * number, number, box, tie))
        _, number, box, tie = min(found, key=lambda one: one[:2])
        labels, ties, thin = np.vstack([labels, box]), np.vstack([ties, tie]), np.vstack([thin, tie])
        across, up = np.sign(_PLACES[number]).astype(int)
        offset = tuple(_PLACES[number].tolist())
        note.set(position=offset, ha=("right", "center", "left")[across + 1], va=("top", "center", "bottom")[up + 1])
        if len(tie):
            line = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, xytext=offset, textcoords="offset points", arrowprops=line, zorder=3)


def _drawn(axes: Axes) -> np.ndarray:
    """(n, 2) pixels along every line of the axes, evenly, for a long straight stretch has points only at its ends."""
    places = [np.empty((0, 2))]
    for line in axes.get_lines():
        path = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        path = path[np.isfinite(path).all(axis=1)]
        if len(path) > 1:
            along = np.concatenate([[0.0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
            at = np.linspace(0, along[-1], int(along[-1] / _STEP_PIXELS) + 2)
            places.append(np.stack([np.interp(at, along, path[:, i]) for i in (0, 1)], axis=1))
    return np.vstack(places)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) areas that a box (4,) shares with each of (n, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n_points, n_boxes): whether a point lies in a box."""
    inside = (points[:, None] >= boxes[:, :2]) & (points[:, None] <= boxes[:, 2:])
    return inside[:, :, 0] & inside[:, :, 1]
