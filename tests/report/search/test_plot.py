"""Layer importance and the search's curve."""

from __future__ import annotations

from typing import Any

import pytest

from depthdial.report.search.plot import draw_importance, draw_search
from depthdial.report.study.summary import gather
from depthdial.stats.intervals import mean_interval


def _bars(figure: Any) -> dict[int, float]:
    return {
        round(bar.get_x() + bar.get_width() / 2): bar.get_y() + bar.get_height()
        for axes in figure.axes
        for bar in axes.patches
    }


def test_bars_reach_the_kl_of_their_layer_and_carry_the_round(study: Any) -> None:
    importance, order = study.family.made_by["importance"], study.family.made_by["drop_order"]
    figure = draw_importance(importance, order)
    assert _bars(figure) == pytest.approx(dict(enumerate(importance)))
    rounds = {int(note.get_text()): round(note.xy[0]) for note in figure.axes[0].texts}
    assert rounds == dict(enumerate(order, start=1))
    assert "most for layer 0" in figure.get_suptitle()


def test_a_layer_that_was_not_tried_is_marked() -> None:
    figure = draw_importance([0.5, None, 2.0], [0])
    assert set(_bars(figure)) == {0, 2}
    assert {note.get_text(): note.xy[0] for note in figure.axes[0].texts} == {"1": 0, "?": 1}


def test_deep_models_are_drawn_in_panels_with_every_layer_numbered() -> None:
    figure = draw_importance([0.1 + i for i in range(80)], [])
    assert len(figure.axes) == 3
    numbers = [int(tick.get_text()) for axes in figure.axes for tick in axes.get_xticklabels()]
    assert numbers == list(range(80))
    assert len(_bars(figure)) == 80


def test_the_curve_has_the_searched_and_the_measured_kl(study: Any) -> None:
    routes = [route for route in gather(study.sweep) if route.family == "greedy-kl"]
    figure = draw_search(study.family.made_by, 12, routes)
    axes = figure.axes[0]
    searched = axes.get_lines()[0]
    assert list(searched.get_xdata()) == [11, 10, 9, 8]
    assert list(searched.get_ydata()) == study.family.made_by["kl"]
    measured = axes.containers[0].lines[0]
    assert list(measured.get_ydata()) == pytest.approx([mean_interval(route.values("kl")).mean for route in routes])
    assert figure.get_suptitle().startswith("Dropping 4 of 12 layers")


def test_without_measured_rows_only_the_search_is_shown(study: Any) -> None:
    axes = draw_search(study.family.made_by, 12).axes[0]
    assert len(axes.get_lines()) == 1 and not axes.containers
