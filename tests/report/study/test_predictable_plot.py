"""What is predictable of the oracle: the figure's lines, stars and bounds lie where the curve has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from depthdial.oracles.predictable import predictable_oracle
from depthdial.report.study.predictable_plot import draw_predictable, shown_budget


def _line(axes: Axes, label: str) -> np.ndarray:
    (line,) = (line for line in axes.get_lines() if str(line.get_label()).startswith(label))
    return np.column_stack([line.get_xdata(), line.get_ydata()])


def _labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _title(figure: Any) -> str:
    return " ".join(figure.legends[0].get_title().get_text().split())


@pytest.fixture(scope="module")
def figure(sampled: Any) -> Any:
    return draw_predictable(sampled.curve)


def test_the_lines_are_the_curves(sampled: Any, figure: Any) -> None:
    curve, top = sampled.curve, figure.axes[0]
    for label, values in {
        "paper's oracle: paid the one sample": curve.plug_in[0],
        "the same with all 4 samples": curve.plug_in[-1],
        "predictable: chosen on 2 samples": curve.predictable[-1],
        "predictable, of shuffled cells": curve.permuted,
        "best static mixture": curve.mixture,
    }.items():
        np.testing.assert_array_equal(_line(top, label), np.column_stack([curve.budgets, values]))
    points = {(x, y) for line in top.get_lines() for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    assert {(route.cost, route.value) for route in curve.fixed} <= points
    band = top.collections[0].get_paths()[0].get_extents()
    assert band.y1 == pytest.approx(curve.predictable_interval.max())


def test_the_stars_are_where_each_oracle_first_equals_the_full_model(sampled: Any, figure: Any) -> None:
    curve = sampled.curve
    assert curve.matches_full_at is not None
    assert _line(figure.axes[0], "predictable oracle as good").tolist() == [[curve.matches_full_at, curve.full_value]]
    assert _line(figure.axes[0], "paper's oracle as good").tolist() == [[curve.plug_in_matches_full_at[0], curve.full_value]]
    claimed = curve.plug_in_matches_full_at[0]
    told = f"at {curve.matches_full_at:.0%} of the layer-steps; the paper's oracle claims {claimed:.0%}"
    assert told in _title(figure)


def test_the_lower_panel_is_both_bounds_by_samples_at_the_star(sampled: Any, figure: Any) -> None:
    curve, bottom = sampled.curve, figure.axes[1]
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in bottom.get_lines() if len(line.get_xdata()) > 1}
    expected = [float(np.interp(curve.matches_full_at, curve.budgets, one)) for one in curve.predictable]
    assert shown_budget(curve) == curve.matches_full_at
    assert drawn[(1, 2)] == expected and expected[-1] == pytest.approx(curve.full_value)
    assert drawn[(1, 2, 4)] == [float(np.interp(curve.matches_full_at, curve.budgets, one)) for one in curve.plug_in]
    assert f"{curve.matches_full_at:.0%} of the cost" in bottom.get_ylabel()


def test_without_a_star_half_of_the_full_cost_is_shown(sampled: Any) -> None:
    curve = replace(sampled.curve, predictable_matches_full_at=(None, None))
    figure = draw_predictable(curve)
    assert shown_budget(curve) == 0.5
    assert "does not reach the full model" in _title(figure)
    assert not any("predictable oracle as good" in label for label in _labels(figure))
    assert any("paper's oracle as good" in label for label in _labels(figure))


def test_without_full_route_intervals_or_shuffles(sampled: Any) -> None:
    keep = [name != "full" for name in sampled.rows["route"].to_pylist()]
    curve = predictable_oracle(sampled.rows.filter(keep), n_bootstrap=0, n_permutations=0, n_splits=2)
    figure = draw_predictable(curve)
    assert curve.budgets[0] < shown_budget(curve) < curve.budgets[-1]
    assert not any("full" in label or "shuffled" in label for label in _labels(figure))
    assert "by budget" in _title(figure)


def test_two_samples_and_another_cost_are_drawn_too(sampled: Any) -> None:
    few = sampled.rows.filter([sample < 2 for sample in sampled.rows["sample"].to_pylist()])
    curve = predictable_oracle(few, cost="step_sec", n_bootstrap=10, n_permutations=1)
    figure = draw_predictable(curve)
    assert any("chosen on 1 sample, paid the others" in label for label in _labels(figure))
    assert figure.axes[0].get_xlabel() == "Cost: mean measured time per decoding step (s)"
    figure.draw_without_rendering()
