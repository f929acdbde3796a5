"""Measured time: fits, and that theory and seconds have axes of their own."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from depthdial.report.study.summary import gather
from depthdial.report.study.tables import headline
from depthdial.report.study.time_plot import affine_fit, draw_quality_time, draw_time_layers, timed_routes
from depthdial.report.study.verdict import decide


def _with(rows: pa.Table, column: str, change: Any) -> pa.Table:
    values = [change(row) for row in rows.select(["route", column]).to_pylist()]
    return rows.set_column(rows.column_names.index(column), column, pa.array(values))


def test_the_fit_finds_the_line_that_the_rows_were_made_with(study: Any) -> None:
    fit = affine_fit(timed_routes(gather(study.sweep)))
    assert fit is not None
    assert fit.layer_ms == pytest.approx(0.8)
    assert fit.base_ms == pytest.approx(2.0, abs=0.1)  # later batches are made a little slower
    assert "0.80 ms for each layer run" in str(fit)


def test_times_that_follow_no_line_get_none(study: Any) -> None:
    slow = _with(study.sweep, "step_sec", lambda row: row["step_sec"] * (9 if row["route"] == "uls:6" else 1))
    routes = timed_routes(gather(slow))
    assert affine_fit(routes) is None
    assert affine_fit(routes[:1]) is None
    assert draw_time_layers(routes).get_suptitle() == "Measured time of a decoding step, by layers run"


def test_points_are_the_tables_speed_against_quality(study: Any) -> None:
    timed = timed_routes(gather(study.sweep))
    axes = draw_quality_time(timed, "rouge_l").axes[0]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.get_lines() if len(line.get_xdata()) == 1
    }
    assert points == {(100 / one.speed.ratio, one.route.mean("rouge_l")) for one in timed}
    told = {row["route"]: (row["speed"], row["step_ms"]) for row in headline(study.sweep)}
    assert told == {one.route.name: (one.speed.ratio, one.ms) for one in timed}
    assert axes.get_xlabel().startswith("measured time of a decoding step (% of the full model's")


def test_the_choices_and_what_is_to_be_kept_are_in_the_picture(study: Any) -> None:
    timed = timed_routes(gather(study.sweep))
    verdict = decide(study.sweep)
    axes = draw_quality_time(timed, "rouge_l", verdict).axes[0]
    assert {text.get_text() for text in axes.texts} >= {"full", *(choice.route.name for choice in verdict.choices)}
    line = next(line for line in axes.get_lines() if line.get_label() == "95% of the full model's")
    assert line.get_ydata()[0] == pytest.approx(0.95 * timed[0].route.mean("rouge_l"))


def test_a_noisy_time_is_drawn_hollow_and_without_its_range(study: Any) -> None:
    def change(row: Any) -> float:
        late = row["sequence_id"] == "s0" and row["route"] == "uls:6"
        return row["step_sec"] * (50 if late else 1)

    values = [change(row) for row in study.sweep.select(["route", "sequence_id", "step_sec"]).to_pylist()]
    rows = study.sweep.set_column(study.sweep.column_names.index("step_sec"), "step_sec", pa.array(values))
    timed = timed_routes(gather(rows))
    noisy = next(one for one in timed if one.route.name == "uls:6")
    assert noisy.speed.is_noisy
    axes = draw_quality_time(timed, "rouge_l").axes[0]
    points = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
    hollow = {float(line.get_xdata()[0]) for line in points if line.get_markerfacecolor() == "none"}
    assert hollow == {100 / one.speed.ratio for one in timed if one.speed.is_noisy}


def test_layers_and_seconds_are_on_different_axes(study: Any) -> None:
    axes = draw_time_layers(timed_routes(gather(study.sweep))).axes[0]
    assert "layers" in axes.get_xlabel() and "ms" in axes.get_ylabel()
    assert axes.get_ylim()[0] == 0


def test_routes_timed_in_other_batches_are_left_out(study: Any) -> None:
    rows = _with(study.sweep, "batch_size", lambda row: 1 if row["route"] == "uls:6" else row["batch_size"])
    assert "uls:6" not in {one.route.name for one in timed_routes(gather(rows))}
    untimed = _with(study.sweep, "step_sec", lambda row: None)
    assert timed_routes(gather(untimed)) == []
