"""Cascades: both runs are paid, thresholds keep a budget, and the best pair is found, all against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.control.judge.cascade import Cascade, best_cascades, cascade_curve, cascade_outcomes, threshold_for_budget
from depthdial.errors import InputError

LAYERS = np.array([10.0, 20.0, 30.0])


def a_table(seed: int, n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence (with ties), values, and costs that differ by sequence."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, (n, 3)) / 4, rng.random((n, 3)), LAYERS + rng.random((n, 3))


def test_whoever_is_unsure_pays_both_runs_and_takes_the_second_answer() -> None:
    values = np.array([[0.5, 0.6, 1.0], [0.4, 0.7, 1.0]])
    got, paid = cascade_outcomes(np.array([0.9, 0.2]), values, LAYERS, 0, 2, 0.5)
    assert got.tolist() == [0.5, 1.0]
    assert paid.tolist() == [10.0, 40.0]
    assert cascade_outcomes(np.array([0.5, 0.5]), values, LAYERS, 0, 1, 0.5)[1].tolist() == [10.0, 10.0]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1.2))
def test_the_threshold_spends_the_most_that_fits(seed: int, share: float) -> None:
    confidence, values, costs = a_table(seed)
    budget = costs[:, 0].mean() + share * costs[:, 2].mean()
    threshold = threshold_for_budget(confidence[:, 0], costs, 0, 2, budget)
    spent = cascade_outcomes(confidence[:, 0], values, costs, 0, 2, threshold)[1].mean()
    candidates = [-np.inf, *np.unique(confidence[:, 0]), np.inf]
    possible = [cascade_outcomes(confidence[:, 0], values, costs, 0, 2, t)[1].mean() for t in candidates]
    assert spent == pytest.approx(max(cost for cost in possible if cost <= budget * (1 + 1e-12)))


def test_a_budget_for_the_shallow_run_alone_escalates_nothing_and_a_great_one_everything() -> None:
    confidence = np.array([0.3, 0.1, 0.2])
    assert threshold_for_budget(confidence, LAYERS, 0, 2, 10.0) == -np.inf
    assert threshold_for_budget(confidence, LAYERS, 0, 2, 40.0) == np.inf
    assert threshold_for_budget(confidence, LAYERS, 0, 2, 20.0) == 0.2  # one of three runs twice


@pytest.mark.parametrize("budget", [9.9, float("nan")])
def test_a_budget_below_the_shallow_route_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="below the shallow route's own mean cost, 10; give at least that"):
        threshold_for_budget(np.zeros(3), LAYERS, 0, 2, budget)


@given(st.integers(0, 2**32 - 1), st.floats(11, 60))
def test_the_best_cascade_is_the_best_of_all_pairs_and_thresholds(seed: int, budget: float) -> None:
    confidence, values, costs = a_table(seed)
    (found,) = best_cascades(confidence, values, costs, [budget])
    reached, spent = (part[:, 0] for part in cascade_curve([found], confidence, values, costs))
    assert spent.mean() <= budget * (1 + 1e-9)
    for shallow in range(3):
        for deep in {0, 1, 2} - {shallow}:
            if costs[:, shallow].mean() <= budget:
                at = threshold_for_budget(confidence[:, shallow], costs, shallow, deep, budget)
                tried = cascade_outcomes(confidence[:, shallow], values, costs, shallow, deep, at)[0].mean()
                assert reached.mean() >= tried - 1e-12


def test_only_the_routes_allowed_are_paired_and_a_column_for_each_budget_comes_back() -> None:
    confidence, values, _ = a_table(3)
    found = best_cascades(confidence, values, LAYERS, [25.0, 35.0], shallow=[1], deep=[2])
    assert [(cascade.shallow, cascade.deep) for cascade in found] == [(1, 2), (1, 2)]
    reached, spent = cascade_curve([*found, Cascade(0, 2, np.inf)], confidence, values, LAYERS)
    assert reached.shape == spent.shape == (8, 3)
    np.testing.assert_array_equal(reached[:, 2], values[:, 2])
    assert (spent[:, 2] == 40).all()


def test_what_does_not_fit_is_refused() -> None:
    confidence, values, costs = a_table(0)
    with pytest.raises(InputError, match="below the mean cost of every shallow route"):
        best_cascades(confidence, values, LAYERS, [15.0], shallow=[1, 2])
    with pytest.raises(InputError, match="do not fit"):
        best_cascades(confidence[:, :2], values, costs, [15.0])
