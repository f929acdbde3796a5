"""The figure has a panel for each task, with the scores, their intervals, and the full model's as a line."""

from __future__ import annotations

import pytest

from depthdial.report.eval.plot import draw_evaluation
from depthdial.rows.evals import EvalResults, in_order
from depthdial.stats.intervals import mean_interval
from tests.report.eval.folders import DEPTHS, made


def test_points_and_lines_are_the_scores():
    units = made(2)
    figure = draw_evaluation(EvalResults({"model": "tiny-model"}, in_order(units)))
    first, second = figure.axes
    assert first.get_title(loc="left") == "task_0 (acc ↑)" and second.get_title(loc="left") == "task_1 (perplexity ↓)"
    lines = first.get_lines()
    full = next(unit for unit in units if unit.task == "task_0" and unit.is_full).score()
    assert lines[0].get_ydata() == [full.value] * 2 and lines[1].get_ydata() == [0.25] * 2
    points = {tuple(line.get_xydata()[0]) for line in lines if len(line.get_xydata()) == 1}
    assert points == {(unit.layers, unit.score().value) for unit in units if unit.task == "task_0"}
    bars = [line.get_ydata() for line in lines[2:] if len(line.get_xydata()) == 2]
    assert len(bars) == len(DEPTHS)
    expected = mean_interval(full.each)
    assert any(tuple(bar) == pytest.approx((expected.low, expected.high)) for bar in bars)


def test_a_task_without_a_score_has_no_panel():
    from dataclasses import replace

    units = [*made(1), replace(made(1)[0], task="zero", scores=())]
    assert len(draw_evaluation(EvalResults({}, in_order(units))).axes) == 1
