"""The policy against brute force, and the online budget against streams made to break it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.oracles.exact.knapsack import solve_budget
from depthdial.oracles.prices import OnlineBudget, budget_in, choose_routes, price_for_budget, prices_for_budgets

LAYERS = np.array([10.0, 15.0, 20.0, 30.0])


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and costs, on grids so that ties happen, or anywhere."""
    n, n_routes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    predicted, costs = rng.integers(0, 5, (n, n_routes)) / 4, rng.integers(0, 6, (n, n_routes)).astype(float)
    if draw(st.booleans()):
        predicted, costs = rng.normal(size=(n, n_routes)), 30 * rng.random((n, n_routes))
    return predicted, costs[0] if draw(st.booleans()) else costs


def mean_cost(predicted: np.ndarray, costs: np.ndarray, price: float) -> float:
    chosen = choose_routes(predicted, costs, price)
    return float(np.broadcast_to(costs, predicted.shape)[np.arange(len(chosen)), chosen].mean())


def slopes(predicted: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Every price at which two routes of a sequence tie, and 0."""
    costs = np.broadcast_to(costs, predicted.shape)
    gains = predicted[:, :, None] - predicted[:, None]
    dearer = costs[:, :, None] - costs[:, None]
    positive = (gains > 0) & (dearer > 0)
    return np.unique(np.append(gains[positive] / dearer[positive], 0.0))


# Choices at a price


def test_the_choice_is_the_best_after_the_price() -> None:
    predicted = np.array([[0.2, 0.5, 0.6, 0.7], [0.8, 0.81, 0.82, 0.9]])
    assert choose_routes(predicted, LAYERS, 0.0).tolist() == [3, 3]
    assert choose_routes(predicted, LAYERS, 0.03).tolist() == [1, 0]
    assert choose_routes(predicted, np.array([LAYERS, LAYERS[::-1]]), 1.0).tolist() == [0, 3]


def test_ties_go_to_the_cheaper_and_among_equal_costs_to_the_better() -> None:
    assert choose_routes(np.array([[0.5, 0.5, 0.4]]), np.array([3.0, 2.0, 1.0]), 0.0).tolist() == [1]
    # 0.1 of quality for 1 layer at 0.1 per layer: a tie that rounding must not break
    assert choose_routes(np.array([[0.3, 0.2, 0.1]]), np.array([3.0, 2.0, 1.0]), 0.1).tolist() == [2]
    assert choose_routes(np.array([[0.3, 0.4]]), np.array([7.0, 7.0]), 1e15).tolist() == [1]


@given(tables(), st.floats(0, 10))
def test_no_route_is_worth_more_than_the_chosen_one(table: tuple[np.ndarray, np.ndarray], price: float) -> None:
    predicted, costs = table
    chosen = choose_routes(predicted, costs, price)
    scores = predicted - price * costs
    assert (scores[np.arange(len(chosen)), chosen] >= scores.max(axis=1) - 1e-9).all()


@pytest.mark.parametrize("price", [-1e-9, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(InputError, match=r"Invalid price .* at least 0"):
        choose_routes(np.zeros((1, 4)), LAYERS, price)


# The price for a budget


@given(tables(), st.floats(0, 1))
def test_it_is_the_smallest_price_that_keeps_the_budget(table: tuple[np.ndarray, np.ndarray], share: float) -> None:
    predicted, costs = table
    whole = np.broadcast_to(costs, predicted.shape)
    low, high = float(whole.min(axis=1).mean()), float(whole.max(axis=1).mean())
    budget = low + share * (high - low)
    price = price_for_budget(predicted, costs, budget)
    assert mean_cost(predicted, costs, price) <= budget * (1 + 1e-9)
    candidates = slopes(predicted, costs)
    enough = [p for p in candidates if mean_cost(predicted, costs, p) <= budget * (1 + 1e-12)]
    assert price == pytest.approx(min(enough), rel=1e-9)


@given(tables(), st.floats(0, 1))
def test_nothing_within_what_it_spends_is_predicted_better(table: tuple[np.ndarray, np.ndarray], share: float) -> None:
    predicted, costs = table
    whole = np.broadcast_to(costs, predicted.shape)
    low, high = float(whole.min(axis=1).mean()), float(whole.max(axis=1).mean())
    price = price_for_budget(predicted, costs, low + share * (high - low))
    rows = np.arange(len(predicted))
    chosen = choose_routes(predicted, costs, price)
    best = solve_budget(predicted, whole, float(whole[rows, chosen].mean()))
    assert predicted[rows, chosen].mean() >= predicted[rows, best].mean() - 1e-9


def test_the_price_is_zero_where_the_best_routes_fit_and_keeps_the_cheapest_budget() -> None:
    predicted = np.random.default_rng(0).random((40, 4))
    assert price_for_budget(predicted, LAYERS, mean_cost(predicted, LAYERS, 0.0)) == 0.0
    assert price_for_budget(predicted, LAYERS, float("inf")) == 0.0
    assert mean_cost(predicted, LAYERS, price_for_budget(predicted, LAYERS, 10.0)) == 10.0


def test_several_budgets_at_once_are_the_same_prices_and_fall() -> None:
    predicted, budgets = np.random.default_rng(1).random((50, 4)), np.array([10.0, 12.5, 16.0, 19.0])
    prices = prices_for_budgets(predicted, LAYERS, budgets)
    assert prices.tolist() == [price_for_budget(predicted, LAYERS, budget) for budget in budgets]
    assert (np.diff(prices) < 0).all()


@pytest.mark.parametrize("budget", [9.99, float("nan")])
def test_a_budget_below_the_cheapest_route_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="below the cheapest routes, whose mean cost is 10; give at least that"):
        price_for_budget(np.random.default_rng(0).random((5, 4)), LAYERS, budget)


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        price_for_budget(np.array([[0.1, np.nan]]), np.array([1.0, 2.0]), 1.5)


# Online


def a_start(budget: float = 18.0, n: int = 400) -> OnlineBudget:
    return OnlineBudget.start(calibration(n), LAYERS, budget)


def calibration(n: int, seed: int = 0, steepness: float = 1.0) -> np.ndarray:
    """Concave in depth, with a steepness of its own for each sequence."""
    rng = np.random.default_rng(seed)
    gain = steepness * rng.random((n, 1))
    return 0.9 - gain * (1 - LAYERS / 30) ** 2


def adversarial_streams() -> dict[str, np.ndarray]:
    wants_all, wants_none = np.tile(1e6 * LAYERS, (300, 1)), np.tile(-LAYERS, (300, 1))
    return {
        "wants everything": wants_all,
        "first little, then everything": np.concatenate([wants_none, wants_all]),
        "first everything, then little": np.concatenate([wants_all, wants_none]),
        "in turn": np.concatenate([wants_all, wants_none]).reshape(2, 300, 4).transpose(1, 0, 2).reshape(600, 4),
        "noise": np.random.default_rng(3).normal(size=(600, 4)),
        "drifts to hard ones": np.concatenate([calibration(300, 1, 0.3), calibration(300, 2, 5.0)]),
    }


@pytest.mark.parametrize("name", adversarial_streams())
@pytest.mark.parametrize("budget", [10.0, 18.0, 29.5])
def test_the_budget_is_kept_after_every_sequence_whatever_arrives(name: str, budget: float) -> None:
    stream, state = adversarial_streams()[name], a_start(budget)
    for t, predicted in enumerate(stream, start=1):
        route, state = state.step(predicted, LAYERS)
        assert state.n_done == t and 0 <= route < 4
        assert state.mean_cost <= budget + (30 - 10) / t + 1e-9


@given(st.integers(0, 2**32 - 1), st.floats(0, 10), st.floats(0, 1))
def test_it_is_kept_with_costs_that_differ_by_sequence_too(seed: int, rate: float, price: float) -> None:
    rng = np.random.default_rng(seed)
    costs = np.concatenate([5 * rng.random((60, 1)), 5 + 25 * rng.random((60, 3))], axis=1)
    state = OnlineBudget(budget=5.0, price=price, rate=rate, slack=30.0)
    routes, state = state.run(rng.normal(size=(60, 4)), costs)
    assert state.spent == pytest.approx(costs[np.arange(60), routes].sum())
    assert state.mean_cost <= 5 + 30 / 60 + 1e-9


def test_on_rows_like_the_calibration_it_spends_the_budget_and_gains_what_the_fixed_price_does() -> None:
    stream, state = calibration(3000, seed=5), a_start()
    routes, end = state.run(stream, LAYERS)
    assert end.mean_cost == pytest.approx(18, abs=0.2)
    fixed = choose_routes(stream, LAYERS, state.price)
    rows = np.arange(len(stream))
    best = solve_budget(stream, LAYERS, end.mean_cost)
    assert stream[rows, routes].mean() > stream[rows, best].mean() - 0.002
    assert stream[rows, routes].mean() == pytest.approx(stream[rows, fixed].mean(), abs=0.01)


def test_when_sequences_become_harder_the_price_rises_and_the_choice_stays_good() -> None:
    stream = calibration(2000, seed=6, steepness=6.0)
    state = a_start()
    routes, end = state.run(stream, LAYERS)
    assert end.price > 2 * state.price
    rows, late = np.arange(2000), slice(1000, None)
    best = solve_budget(stream[late], LAYERS, float(LAYERS[routes[late]].mean()))
    # What is lost to not knowing the future is a small share of what choosing gains over the budget's fixed route.
    found, most = stream[rows, routes][late].mean(), stream[late][np.arange(1000), best].mean()
    blind = np.interp(LAYERS[routes[late]].mean(), LAYERS, stream[late].mean(axis=0))
    assert found - blind > 0.8 * (most - blind) > 0


def test_when_they_become_easier_the_price_falls() -> None:
    state = a_start()
    _, end = state.run(calibration(2000, seed=7, steepness=0.2), LAYERS)
    assert end.price < 0.5 * state.price
    assert end.mean_cost > 17


def test_a_route_is_run_even_where_none_fits_and_what_comes_later_pays() -> None:
    state = OnlineBudget(budget=5.0, price=0.0, rate=0.0, slack=0.0)
    dear, cheap = np.array([20.0, 30.0]), np.array([1.0, 5.0])
    route, state = state.step(np.array([0.1, 0.9]), dear)
    assert route == 0 and state.spent == 20
    routes, state = state.run(np.tile([0.1, 0.9], (20, 1)), cheap)
    assert routes[0] == 0 and routes[-1] == 1
    assert state.mean_cost <= 5


def test_equal_predictions_or_costs_start_too() -> None:
    assert OnlineBudget.start(np.full((5, 4), 0.5), LAYERS, 15.0).run(np.full((9, 4), 0.2), LAYERS)[1].mean_cost == 10
    assert OnlineBudget.start(np.zeros((5, 2)), np.array([3.0, 3.0]), 3.0).rate == 0


@pytest.mark.parametrize("wrong", [{"budget": -1.0}, {"rate": float("nan")}, {"slack": float("inf")}, {"price": -1.0}])
def test_a_state_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 0"):
        replace(OnlineBudget(budget=1.0, price=0.0, rate=0.0, slack=0.0), **wrong)


def test_budgets_of_controllers_are_numbers_or_shares():
    assert [budget_in("layers", one, full_cost=30, n_layers=30) for one in (24, "24", "80%")] == [24.0] * 3
    assert [budget_in("layer_steps", one, full_cost=1.0, n_layers=30) for one in (24, "24", "80%", 0.8)] == [0.8] * 4
    for bad in (0, -1, "", "%", float("nan"), float("inf"), None, True):
        with pytest.raises(InputError, match="The budget"):
            budget_in("layers", bad, full_cost=30, n_layers=30)
