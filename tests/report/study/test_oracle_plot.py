"""Figure 2: its lines, areas and star lie where the curve has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from depthdial.oracles.oracle import oracle
from depthdial.report.study.oracle_plot import draw_oracle


def _line(axes: Axes, label: str) -> np.ndarray:
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return np.column_stack([line.get_xdata(), line.get_ydata()])


def _texts(figure: Any) -> list[str]:
    return [figure.legends[0].get_title().get_text(), *(note.get_text() for axes in figure.axes for note in axes.texts)]


@pytest.fixture(scope="module")
def figure(study: Any) -> Any:
    return draw_oracle(study.curves["rouge_l"])


def test_the_star_is_where_the_oracle_first_equals_the_full_model(study: Any, figure: Any) -> None:
    curve = study.curves["rouge_l"]
    star = _line(figure.axes[0], "oracle as good as full")
    assert star.tolist() == [[curve.matches_full_at, curve.full_value]]
    assert np.interp(star[0, 0], curve.budgets, curve.value) == pytest.approx(curve.full_value, abs=0.01)
    assert f"{curve.matches_full_at:.1%} of its layer-steps" in _texts(figure)[0]
    assert figure.axes[1].get_xlabel() == "Cost, % of the full model's layer-steps"
    assert figure.axes[1].xaxis.get_major_formatter()(0.5) == "50"
    layers = oracle(study.sweep, cost="layers", n_bootstrap=0, n_permutations=0)
    assert f"{layers.matches_full_at:.1f} of 12 layers" in _texts(draw_oracle(layers))[0]


def test_the_lines_are_the_curves(study: Any, figure: Any) -> None:
    curve = study.curves["rouge_l"]
    top = figure.axes[0]
    assert _line(top, "oracle").tolist() == np.column_stack([curve.budgets, curve.value]).tolist()
    mixture = _line(top, "best mixture of fixed routes")
    on_curve = np.isin(mixture[:, 0], curve.budgets)
    np.testing.assert_allclose(mixture[on_curve, 1], curve.mixture)
    assert {route.cost for route in curve.fixed} <= set(mixture[:, 0])
    assert _line(top, "oracle on shuffled scores (luck)")[:, 1].tolist() == curve.permuted.tolist()
    assert set(_line(top, "oracle's shares at random")[:, 0]) == set(curve.random_cost)


def test_the_areas_are_the_shares_and_fill_the_panel(study: Any, figure: Any) -> None:
    curve = study.curves["rouge_l"]
    bottom = figure.axes[1]
    assert [area.get_label() for area in bottom.collections] == list(curve.routes)
    tops = [area.get_paths()[0].get_extents().y1 for area in bottom.collections]
    assert tops[-1] == pytest.approx(100)
    assert tops[0] == pytest.approx(100 * curve.shares[:, 0].max())


def test_fixed_routes_are_labelled_points_without_the_full_one(study: Any, figure: Any) -> None:
    curve = study.curves["rouge_l"]
    top = figure.axes[0]
    points = {(x, y) for line in top.get_lines() for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    assert {(route.cost, route.value) for route in curve.fixed} <= points
    assert {name for name in curve.routes if name != "full"} <= set(_texts(figure))
    assert "full" not in _texts(figure)


def test_labels_do_not_overlap(figure: Any) -> None:
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in figure.axes[0].texts if note.get_text()]
    assert len(boxes) == 9
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_a_full_route_bootstrap_or_shuffles_there_is_no_star() -> None:
    rows = {
        "sequence_id": ["a", "a", "b", "b"],
        "route": ["uls:2", "ee:1"] * 2,
        "layers_run": [2, 1] * 2,
        "rouge_l": [0.5, 0.1, 0.2, 0.3],
    }
    curve = oracle(rows, n_bootstrap=0, n_permutations=0)
    figure = draw_oracle(curve)
    labels = {line.get_label() for line in figure.axes[0].get_lines()}
    assert curve.matches_full_at is None
    assert "oracle" in labels and not {"oracle as good as full", "full model"} & labels
    assert _texts(figure)[0] == "ROUGE-L of the best route for each sequence, by budget"


def test_one_budget_still_has_a_strip_of_shares() -> None:
    rows = {"sequence_id": ["a"], "route": ["full"], "layers_run": [4], "rouge_l": [0.5]}
    bottom = draw_oracle(oracle(rows, n_bootstrap=0, n_permutations=0)).axes[1]
    assert bottom.collections[0].get_paths()[0].get_extents().width == pytest.approx(1.0)


def test_another_cost_is_named_on_the_axis(study: Any) -> None:
    timed = oracle(study.sweep, cost="decode_sec", n_bootstrap=0, n_permutations=0)
    weighted = oracle(study.sweep, weight_by="new_tokens", n_bootstrap=0, n_permutations=0)
    figure = draw_oracle(timed)
    assert figure.axes[1].get_xlabel() == "Cost: mean measured decoding time per sequence (s)"
    assert "of the full cost" in _texts(figure)[0]
    assert draw_oracle(weighted).axes[1].get_xlabel() == "Cost per sequence: mean layers run, weighted"
