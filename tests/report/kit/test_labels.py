"""Labels beside points."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import figure_style, new_figure

_COORDINATE = st.floats(0.2, 0.8).map(lambda x: round(x, 2))


def _axes() -> Any:
    axes = new_figure(4.0).add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return axes


def _texts(axes: Any) -> list[Any]:
    return [note for note in axes.texts if note.get_text()]


@given(st.lists(st.tuples(_COORDINATE, _COORDINATE), min_size=1, max_size=7))
def test_every_point_gets_its_label_inside_the_axes_and_none_covers_another(points: list[tuple[float, float]]) -> None:
    with figure_style():
        axes = _axes()
        place_labels(axes, points, [f"uls:{i}" for i in range(len(points))])
        notes = _texts(axes)
        boxes, frame = [note.get_window_extent() for note in notes], axes.get_window_extent()
    assert [note.xy for note in notes] == points
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_a_label_gives_way_to_a_curve() -> None:
    with figure_style():
        free, crossed = _axes(), _axes()
        place_labels(free, [(0.5, 0.5)], ["uls:6"])
        crossed.plot([0.5, 1.0], [0.5, 0.5])
        place_labels(crossed, [(0.5, 0.5)], ["uls:6"])
    assert _texts(free)[0].get_position() == (6, 0)
    assert _texts(crossed)[0].get_position() == (-6, 0)


def test_a_label_that_went_further_off_is_tied_to_its_point() -> None:
    crowd = [(0.5 + dx / 40, 0.5 + dy / 40) for dx in range(-2, 3) for dy in range(-2, 3)]
    with figure_style():
        axes = _axes()
        place_labels(axes, crowd, [f"greedy-kl:{i}" for i in range(25)])
    ties = [note for note in axes.texts if not note.get_text()]
    assert ties and all(note.arrow_patch is not None for note in ties)


def test_no_points_no_labels() -> None:
    with figure_style():
        axes = _axes()
        place_labels(axes, [], [])
    assert list(axes.texts) == []
