"""The pictures of a controller hold the score's own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from depthdial.report.controller.plot import draw_calibration, draw_controller, draw_controller_shares
from tests.report.controller.demo import demo_score, equal_score


def _points(axes: Axes, color: str, marker: str = "None") -> list[list[list[float]]]:
    """The lines of a colour and marker, as their points."""
    lines = [line for line in axes.get_lines() if line.get_color() == color and line.get_marker() == marker]
    return [np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() for line in lines]


def _title(figure: Any) -> str:
    return " ".join(figure.legends[0].get_title().get_text().split())


@pytest.fixture(scope="module")
def figure() -> Any:
    return draw_controller(demo_score())


def test_the_controller_stands_at_what_it_spent_and_its_gain_below(figure: Any) -> None:
    own = demo_score().controller
    top, bottom = figure.axes
    for axes, values in ((top, own.values), (bottom, own.gains)):
        (drawn,) = _points(axes, "#D55E00", "o")
        np.testing.assert_allclose(drawn, np.column_stack([own.costs[:-1], values[:-1]]))
    seeds = _points(bottom, "#D55E00")
    np.testing.assert_allclose(seeds, np.stack([own.seed_costs[:, :-1], own.seed_gains[:, :-1]], axis=2))


def test_intervals_are_those_of_the_score(figure: Any) -> None:
    own = demo_score().controller
    bars = [part for part in figure.axes[1].collections if isinstance(part, LineCollection)]
    ends = [[segment[:, 1].tolist() for segment in part.get_segments()] for part in bars]
    assert any(np.allclose(one, own.gain_intervals[:-1]) for one in ends)


def test_curves_and_fixed_points_are_the_samples(figure: Any) -> None:
    curves, top = demo_score().curves, figure.axes[0]
    named = {line.get_gid(): line for line in top.get_lines() if line.get_gid()}
    np.testing.assert_array_equal(named["mixture"].get_ydata(), curves.mixture)
    np.testing.assert_array_equal(named["predictable"].get_ydata(), curves.predictable)
    single = {(x, y) for line in top.get_lines() if len(line.get_xdata()) == 1 for x, y in [line.get_xydata()[0]]}
    assert {(route.cost, route.value) for route in demo_score().fixed} <= single


def test_the_legend_starts_with_the_controller_and_names_every_rival(figure: Any) -> None:
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["controller", "its 3 seeds"]
    assert {"prompt length only", "random, the controller's shares"} <= set(labels)
    assert len(labels) == len(set(labels)) == 7
    assert f"Agreement at equal cost: {demo_score().gaps[-1].text()} of the gap to the oracle" in _title(figure)


def test_without_a_gap_the_title_says_so_and_one_seed_is_no_spread() -> None:
    figure = draw_controller(equal_score())
    assert "between the static mixture and the oracle there is no gap to close" in _title(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert not any("seeds" in label or "predictable" in label for label in labels)
    figure.draw_without_rendering()


def test_many_rivals_and_routes_are_drawn_too() -> None:
    score = demo_score()
    rivals = [replace(score.methods[1], name=f"rival {i}") for i in range(5)]
    many = replace(score, methods=(*score.methods, *rivals), fixed=score.fixed * 5)
    figure = draw_controller(many)
    assert len(figure.legends[0].get_texts()) == 12
    assert "greedy-kl:6" not in [text.get_text() for text in figure.axes[0].texts]


def test_areas_are_the_shares() -> None:
    score = demo_score()
    axes = draw_controller_shares(score).axes[0]
    tops = 100 * score.shares.cumsum(axis=1)
    for i, area in enumerate(axes.collections):
        assert area.get_paths()[0].get_extents().y1 == pytest.approx(tops[:, i].max())
    assert len(axes.collections) == 4 and axes.get_xlim() == (7, 11)
    draw_controller_shares(equal_score()).draw_without_rendering()  # one budget


def test_calibration_has_a_panel_for_each_route_that_varies() -> None:
    score = demo_score()
    figure = draw_calibration(score)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["greedy-kl:6", "greedy-kl:8", "greedy-kl:10"]
    for axes, part in zip(shown, score.calibration, strict=False):
        (drawn,) = _points(axes, "#0072B2", "o")
        np.testing.assert_allclose(drawn, np.column_stack([part.predicted, part.measured]))
        assert axes.texts[0].get_text() == f"explains {100 * (part.explained or 0):.0f}%"
    assert draw_calibration(equal_score()) is None


def test_of_many_routes_twelve_are_calibrated_the_first_and_last_among_them() -> None:
    score = demo_score()
    parts = [replace(score.calibration[i % 3], route=f"route {i}") for i in range(30)]
    figure = draw_calibration(replace(score, calibration=tuple(parts)))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 12 and titles[0] == "route 0" and titles[-1] == "route 29"
    five = draw_calibration(replace(score, calibration=tuple(parts[:5])))
    assert five is not None and sum(axes.get_visible() for axes in five.axes) == 5
    five.draw_without_rendering()
