"""The multiple-choice knapsack: equal to brute force, exact on grids of costs, honest about its gap elsewhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.oracles.exact import core as core_search
from depthdial.oracles.exact.knapsack import prepare, solve_budget, solve_budget_bounded


def brute_force(values, costs, budget, weights=None):
    """(best mean value, cheapest mean cost that has it) over every assignment."""
    n, n_routes = values.shape
    weights = np.ones(n) if weights is None else weights
    choices = np.array(list(itertools.product(range(n_routes), repeat=n)))
    mean_costs = (costs[np.arange(n), choices] * weights).sum(axis=1) / weights.sum()
    mean_values = values[np.arange(n), choices].mean(axis=1)
    allowed = mean_costs <= budget + 1e-9
    best = mean_values[allowed].max()
    return best, mean_costs[allowed & (mean_values >= best - 1e-12)].min()


def plain_dynamic_programme(values, costs, total):
    """Best total value at integer total cost <= total: sequence by sequence over every budget."""
    best = np.zeros(total + 1)
    for row_values, row_costs in zip(values, costs, strict=True):
        extended = np.full(total + 1, -np.inf)
        for value, cost in zip(row_values, row_costs, strict=True):
            if cost <= total:
                extended[cost:] = np.maximum(extended[cost:], best[: total + 1 - cost] + value)
        best = extended
    return best[total]


@st.composite
def tables(draw, cost_kind):
    """Small tables full of ties, equal costs and free routes, with a budget anywhere between cheapest and dearest."""
    n, n_routes = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def table(cells):
        return np.array(draw(st.lists(cells, min_size=n * n_routes, max_size=n * n_routes))).reshape(n, n_routes)

    values = table(st.one_of(st.integers(-2, 3).map(float), st.integers(0, 10_000).map(lambda square: square**0.5 / 10)))
    costs = table(cost_kind)
    low, high = costs.min(axis=1).mean(), costs.max(axis=1).mean()
    budget = low + draw(st.floats(0, 1.1)) * (high - low)
    return values, costs, budget


integer_costs = tables(st.one_of(st.integers(0, 6), st.integers(0, 3).map(lambda cost: 1000 * cost)))
layer_fractions = tables(st.integers(0, 30).map(lambda layers: layers / 30))
real_costs = tables(st.integers(0, 10_000).map(lambda square: square**0.5 / 10))


@given(table=st.one_of(integer_costs, layer_fractions, real_costs))
def test_equals_brute_force_and_takes_the_cheaper_of_equals(table):
    values, costs, budget = table
    found = solve_budget_bounded(values, costs, budget)
    best, cheapest = brute_force(values, costs, budget)
    assert found.exact
    assert found.gap == 0
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.cost == pytest.approx(cheapest, abs=1e-9)
    rows = np.arange(len(values))
    assert found.value == pytest.approx(values[rows, found.choice].mean())
    assert found.cost == pytest.approx(costs[rows, found.choice].mean())


@given(table=integer_costs, data=st.data())
def test_weighted_costs_equal_brute_force(table, data):
    values, costs, _ = table
    weights = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(values), max_size=len(values))), dtype=float)
    weights[0] += 1
    cheapest = (costs.min(axis=1) * weights).sum() / weights.sum()
    budget = cheapest + data.draw(st.floats(0, 4))
    found = solve_budget_bounded(values, costs, budget, weights=weights)
    assert found.value == pytest.approx(brute_force(values, costs, budget, weights)[0], abs=1e-9)
    assert found.cost <= budget + 1e-9


def medium_case(seed, kind):
    rng = np.random.default_rng(seed)
    n, n_routes, dearest = int(rng.integers(5, 60)), int(rng.integers(2, 10)), int(rng.integers(3, 40))
    values = {
        "real": rng.random((n, n_routes)),
        "coarse": rng.integers(0, 3, (n, n_routes)) / 2,
        "right or wrong": rng.integers(0, 2, (n, n_routes)).astype(float),
        "all alike": np.tile(rng.random(n_routes), (n, 1)),
    }[kind]
    costs = rng.integers(0, dearest, (n, n_routes))
    if kind == "all alike":
        costs = np.tile(costs[0], (n, 1))
    total = int(rng.integers(costs.min(axis=1).sum(), costs.max(axis=1).sum() + 1))
    return values, costs, total


KINDS = ("real", "coarse", "right or wrong", "all alike")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", ["dense", "sparse"])
def test_both_searches_equal_a_plain_dynamic_programme(kind, search, monkeypatch):
    monkeypatch.setattr(core_search, "_FIRST_OPTIONS", 1)  # so that the ceiling has to be raised
    if search == "sparse":
        monkeypatch.setattr(core_search, "_MAX_DENSE_CELLS", 0)
    for seed in range(12):
        values, costs, total = medium_case(seed, kind)
        found = solve_budget_bounded(values, costs, total / len(values))
        assert found.exact
        assert found.value * len(values) == pytest.approx(plain_dynamic_programme(values, costs, total), abs=1e-9)


def test_a_search_cut_short_still_brackets_the_optimum(monkeypatch):
    monkeypatch.setattr(core_search, "_MAX_DENSE_CELLS", 0)
    monkeypatch.setattr(core_search, "_MIN_STATES", 2)
    monkeypatch.setattr(core_search, "_MAX_STATES", 3)
    n_inexact = 0
    for seed in range(30):
        values, costs, total = medium_case(seed, "real")
        found = solve_budget_bounded(values, costs, total / len(values))
        best = plain_dynamic_programme(values, costs, total) / len(values)
        assert found.value - 1e-9 <= best <= found.bound + 1e-9
        assert found.bound == pytest.approx(found.value + found.gap)
        assert costs[np.arange(len(values)), found.choice].sum() <= total
        n_inexact += not found.exact
    assert n_inexact > 0


def test_real_costs_at_size_leave_a_tiny_proven_gap():
    rng = np.random.default_rng(5)
    values, costs = rng.random((400, 12)), 30 * rng.random((400, 12))
    found = solve_budget_bounded(values, costs, 6.0)
    assert found.cost <= 6.0
    assert 0 <= found.gap <= 1e-5


@given(table=integer_costs, factor=st.sampled_from([2, 7, 1000, 10**9]))
def test_the_unit_of_integer_costs_does_not_matter(table, factor):
    values, costs, budget = table
    total = np.floor(budget * len(values))
    plain = solve_budget_bounded(values, costs, total / len(values))
    scaled = solve_budget_bounded(values, costs * factor, total * factor / len(values))
    assert scaled.value == plain.value
    assert scaled.exact


def test_a_rounded_budget_buys_what_it_says():
    values = np.tile([0.0, 1.0], (10, 1))
    assert solve_budget(values, np.array([0, 1]), 0.1 + 0.2).sum() == 3
    assert solve_budget(values, np.array([0.1, 0.7]), np.mean([0.7] * 3 + [0.1] * 7)).sum() == 3
    assert solve_budget(values, np.array([0, 1]), 0.3 - 1e-6).sum() == 2


def test_costs_per_route_are_shared_by_all_sequences():
    values = np.array([[0.1, 0.9, 1.0], [0.5, 0.5, 0.6]])
    np.testing.assert_array_equal(solve_budget(values, [1, 2, 6], 1.5), [1, 0])
    np.testing.assert_array_equal(solve_budget(values, [[1, 2, 6], [1, 2, 6]], 1.5), [1, 0])
    np.testing.assert_array_equal(solve_budget(values, [1, 2, 6], np.inf), [2, 2])


@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-30])
def test_costs_that_hardly_differ_do_no_harm(tiny):
    values, costs = np.array([[0.0, 1.0], [0.0, 0.5]]), np.array([[0.0, tiny], [0.0, 1.0]])
    np.testing.assert_array_equal(solve_budget(values, costs, 0.4), [1, 0])
    assert solve_budget(values, costs, 0.0)[1] == 0


def test_one_sequence_one_route():
    np.testing.assert_array_equal(solve_budget([[3.0]], [[2]], 2), [0])


def test_cheapest_reaching_is_the_least_budget_that_solves_to_the_target():
    rng = np.random.default_rng(3)
    for _ in range(20):
        values, costs = rng.random((6, 4)), rng.integers(0, 12, (6, 4))
        problem, target = prepare(values, costs), rng.uniform(values.mean(), values.max(axis=1).mean())
        found = problem.cheapest_reaching(target)
        assert found is not None
        assert found.value >= target
        spent = round(found.cost * 6)
        if spent > costs.min(axis=1).sum():
            assert problem.solve((spent - 1) / 6).value < target
        assert problem.cheapest_reaching(values.max(axis=1).mean() + 0.01) is None


GOOD = {"values": [[0.0, 1.0], [0.5, 0.6]], "costs": [[1, 2], [1, 3]], "budget": 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": [[np.nan, 1.0], [0.5, 0.6]]}, "values hold NaN"),
        ({"costs": [[1, np.inf], [1, 3]]}, "costs hold NaN or infinite"),
        ({"values": [0.0, 1.0]}, r"shape \(2,\)"),
        ({"values": [[0.0, 1.0], [0.5]]}, "not an array of real numbers"),
        ({"values": [["a", "b"], ["c", "d"]]}, "not an array of real numbers"),
        ({"values": np.empty((0, 2))}, "empty"),
        ({"values": np.empty((2, 0))}, "empty"),
        ({"costs": [[1, 2, 3], [1, 3, 4]]}, r"costs have shape \(2, 3\)"),
        ({"costs": [[1, -2], [1, 3]]}, "negative number, -2"),
        ({"budget": np.nan}, "budget is NaN"),
        ({"budget": "all"}, "'all' is not a number"),
        ({"budget": 0.5}, "below the cheapest assignment, whose mean cost is 1;"),
        ({"weights": [1, 2, 3]}, r"weights have shape \(3,\)"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1, -1]}, "at least 0"),
    ],
)
def test_bad_input_is_one_clear_sentence(changed, message):
    given_table = GOOD | changed
    with pytest.raises(InputError, match=message) as caught:
        solve_budget(**given_table)
    assert "\n" not in str(caught.value)


def test_the_good_table_of_the_bad_input_test_is_good():
    np.testing.assert_array_equal(solve_budget(**GOOD), [1, 0])
