"""Comparisons at equal cost, on the sample and on resamples, against straightforward ways of computing the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.control.judge.equal_cost import Draws, interpolated
from depthdial.oracles.baselines import mixture_curve
from depthdial.oracles.exact.knapsack import prepare

LAYERS = np.array([10.0, 15.0, 20.0, 30.0])


def some_draws(seed: int = 0, n: int = 40, n_bootstrap: int = 30) -> Draws:
    rng = np.random.default_rng(seed)
    values = 0.3 + 0.02 * LAYERS + 0.2 * rng.normal(size=(n, 4))
    costs = LAYERS + rng.random((n, 4)) if seed % 2 else np.broadcast_to(LAYERS, (n, 4))
    return Draws.of(values, costs, n_bootstrap, rng)


def test_the_first_draw_is_the_sample_and_the_others_hold_as_many_sequences() -> None:
    draws = some_draws()
    np.testing.assert_allclose(draws.mean(draws.values)[0], draws.values.mean(axis=0))
    counts = draws.weights * 40
    np.testing.assert_allclose(counts, np.rint(counts))
    np.testing.assert_allclose(draws.weights.sum(axis=1), 1)
    assert len(np.unique(draws.weights, axis=0)) == 31


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_mixture_is_the_best_pair_of_routes_on_every_draw(seed: int, share: float) -> None:
    draws = some_draws(seed, n=10, n_bootstrap=3)
    values, costs = draws.mean(draws.values), draws.mean(draws.costs)
    at = costs.min(axis=1) + share * np.ptp(costs, axis=1)
    for cost, value, budget, found in zip(costs, values, at, draws.mixture(at[:, None])[:, 0], strict=True):
        assert found == pytest.approx(mixture_curve(cost, value, np.array([budget]))[0])
        best = max(
            (1 - w) * value[a] + w * value[b]
            for a in range(4)
            for b in range(4)
            for w in np.linspace(0, 1, 101)
            if (1 - w) * cost[a] + w * cost[b] <= budget
        )
        assert best <= found + 1e-9 and found - best < 0.02


def test_below_the_cheapest_route_the_mixture_is_that_route() -> None:
    draws = some_draws()
    np.testing.assert_allclose(draws.mixture(np.full((31, 1), 3.0))[:, 0], draws.mean(draws.values)[:, 0])


def test_choices_are_paid_their_own_values_costs_and_the_overhead() -> None:
    draws = some_draws(1)
    choices = np.random.default_rng(4).integers(0, 4, (40, 2, 3))
    reached = draws.chosen(choices, overhead=0.5)
    assert reached.values.shape == (31, 2, 3) and reached.gains.shape == (31, 3)
    rows = np.arange(40)
    for draw in (0, 7):
        for seed, budget in np.ndindex(2, 3):
            picked = choices[:, seed, budget]
            assert reached.values[draw, seed, budget] == pytest.approx(draws.weights[draw] @ draws.values[rows, picked])
            assert reached.costs[draw, seed, budget] == pytest.approx(draws.weights[draw] @ draws.costs[rows, picked] + 0.5)
    np.testing.assert_allclose(reached.gains, (reached.values - draws.mixture(reached.costs)).mean(axis=1))


def test_one_route_for_all_gains_nothing_and_is_a_mixture_itself() -> None:
    draws = some_draws(2)
    for route in range(4):
        assert (draws.chosen(np.full((40, 1, 1), route), 0.0).gains <= 1e-12).all()


def test_shares_handed_out_blindly_are_worth_what_shuffling_them_is_on_average() -> None:
    draws = some_draws(1)
    choices = draws.values.argmax(axis=1)[:, None, None]
    blind = draws.blind(choices)
    rng = np.random.default_rng(5)
    shuffled, rows = [rng.permutation(choices[:, 0, 0]) for _ in range(3000)], np.arange(40)
    for found, table, close in ((blind.values, draws.values, 2e-3), (blind.costs, draws.costs, 2e-2)):
        assert found[0, 0, 0] == pytest.approx(np.mean([table[rows, one].mean() for one in shuffled]), abs=close)
    assert (blind.gains <= 1e-12).all()  # no static shares beat the best ones


def test_the_oracle_is_the_knapsack_on_the_sample_and_bounds_every_choice_on_every_draw() -> None:
    draws = some_draws(1)
    at = np.linspace(12, 25, 9)
    rng = np.random.default_rng(6)
    found = draws.oracle(draws.values, np.tile(at, (31, 1)), rng)
    problem = prepare(draws.values, draws.costs)
    np.testing.assert_allclose(found[0], np.interp(at, problem.breakpoint_costs, problem.breakpoint_values), atol=1e-4)
    for _ in range(20):
        some = draws.chosen(rng.integers(0, 4, (40, 1, 1)), 0.0)
        assert (draws.oracle(draws.values, some.costs, rng) >= some.values - 1e-3).all()


def test_an_oracle_that_guesses_blindly_gains_nothing() -> None:
    draws = some_draws(3, n=4000, n_bootstrap=1)
    means = np.tile(draws.values.mean(axis=0), (4000, 1))
    at = np.tile(np.linspace(12, 29, 8), (2, 1))
    paid = draws.oracle(means, at, np.random.default_rng(7))
    np.testing.assert_allclose(paid[0], draws.mixture(at)[0], atol=0.01)


def test_curves_are_straight_between_their_points_and_flat_beyond() -> None:
    at = np.array([[0.0, 1.5], [2.5, 9.0]])
    read = interpolated(at, np.array([[1.0, 2.0], [2.0, 3.0]]), np.array([[1.0, 3.0], [5.0, 7.0]]))
    assert read.tolist() == [[1.0, 2.0], [6.0, 7.0]]
