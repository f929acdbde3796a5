"""Measured time: fits, and that theory and seconds have axes of their own."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from depthdial.report.study.summary import gather
from depthdial.report.study.time_plot import affine_fit, describe_fit, draw_quality_time, draw_time_layers, timed_routes


def _with(rows: pa.Table, column: str, change: Any) -> pa.Table:
    values = [change(row) for row in rows.select(["route", column]).to_pylist()]
    return rows.set_column(rows.column_names.index(column), column, pa.array(values))


def test_the_fit_finds_the_line_that_the_rows_were_made_with(study: Any) -> None:
    fit = affine_fit(timed_routes(gather(study.sweep)))
    assert fit is not None
    assert fit.layer_ms == pytest.approx(0.8)
    assert fit.base_ms == pytest.approx(2.0, abs=0.1)  # later batches are made a little slower
    assert "0.80 ms for each layer run" in describe_fit(fit)


def test_times_that_follow_no_line_get_none(study: Any) -> None:
    slow = _with(study.sweep, "step_sec", lambda row: row["step_sec"] * (9 if row["route"] == "uls:6" else 1))
    routes = timed_routes(gather(slow))
    assert affine_fit(routes) is None
    assert affine_fit(routes[:1]) is None
    assert draw_time_layers(routes).get_suptitle() == "Measured time of a decoding step, by layers run"


def test_points_are_measured_time_against_quality(study: Any) -> None:
    routes = timed_routes(gather(study.sweep))
    axes = draw_quality_time(routes, "rouge_l").axes[0]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.get_lines() if len(line.get_xdata()) == 1
    }
    assert points == {(route.step_ms, route.mean("rouge_l")) for route in routes}
    assert axes.get_xlabel() == "measured time per decoding step (ms)"


def test_relative_axes_put_the_full_model_at_one(study: Any) -> None:
    routes = timed_routes(gather(study.sweep))
    figure = draw_quality_time(routes, "rouge_l")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    top, right = axes.child_axes
    full = routes[0]
    assert top.get_xlim()[1] == pytest.approx(axes.get_xlim()[1] / full.step_ms)
    assert right.get_ylim()[1] == pytest.approx(axes.get_ylim()[1] / full.mean("rouge_l"))


def test_layers_and_seconds_are_on_different_axes(study: Any) -> None:
    axes = draw_time_layers(timed_routes(gather(study.sweep))).axes[0]
    assert "layers" in axes.get_xlabel() and "ms" in axes.get_ylabel()
    assert axes.get_ylim()[0] == 0


def test_routes_timed_in_other_batches_are_left_out(study: Any) -> None:
    rows = _with(study.sweep, "batch_size", lambda row: 1 if row["route"] == "uls:6" else row["batch_size"])
    assert "uls:6" not in {route.name for route in timed_routes(gather(rows))}
    untimed = _with(study.sweep, "step_sec", lambda row: None)
    assert timed_routes(gather(untimed)) == []


def test_the_title_says_which_route_keeps_how_much_in_which_time(study: Any) -> None:
    routes = timed_routes(gather(study.sweep))
    title = draw_quality_time(routes, "agreement").get_suptitle()
    assert title == "Agreement and measured time: no shallower route keeps 90% of the full model's"
    better = _with(study.sweep, "agreement", lambda row: 0.95 if row["route"] == "uls:9" else row["agreement"])
    routes = timed_routes(gather(better))
    by_name = {route.name: route.step_ms or 0.0 for route in routes}
    share = by_name["uls:9"] / by_name["full"]
    expected = f"Agreement: uls:9 reaches 95% of the full model's in {share:.0%} of its time"
    assert draw_quality_time(routes, "agreement").get_suptitle() == expected
