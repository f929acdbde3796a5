"""The oracle's curve: equal to brute force, with known truths, what it is held against, and its storage."""

import itertools
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.oracles.exact.knapsack import prepare
from depthdial.oracles.oracle import OracleCurve, oracle, read_off

ROUTES = ("ee:2", "uls:3", "rls:3@0", "full")
LAYERS = (2, 3, 3, 6)


def make_rows(values, costs=LAYERS, routes=ROUTES):
    values = np.asarray(values, dtype=float)
    n = len(values)
    return {
        "sequence_id": np.repeat([f"s{i}" for i in range(n)], len(routes)),
        "route": np.tile(routes, n),
        "rouge_l": values.ravel(),
        "layers_run": np.broadcast_to(costs, values.shape).ravel(),
        "new_tokens": np.repeat(np.arange(1, n + 1), len(routes)),
    }


def random_rows(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return make_rows(np.clip(rng.random((n, 1)) * np.array([0.4, 0.6, 0.55, 0.9]) + rng.random((n, 4)) / 4, 0, 1))


def quick(rows, **options):
    return oracle(rows, **{"n_bootstrap": 50, "n_permutations": 2, "cost": "layers"} | options)


def every_assignment(values, costs):
    n, n_routes = values.shape
    choices = np.array(list(itertools.product(range(n_routes), repeat=n)))
    return values[np.arange(n), choices].mean(axis=1), costs[np.arange(n), choices].mean(axis=1)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    coarse=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_whole_curve_and_star_equal_brute_force(shape, coarse, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape) / 4 if coarse else rng.random(shape)
    costs = rng.integers(0, 7, shape)
    routes = [*(f"r{i}" for i in range(shape[1] - 1)), "full"]
    curve = quick(make_rows(values, costs, routes), n_bootstrap=0, n_permutations=0)
    all_values, all_costs = every_assignment(values, costs)
    for budget, value in zip(curve.budgets, curve.value, strict=True):
        assert value == pytest.approx(all_values[all_costs <= budget + 1e-9].max())
        assert curve.value_at(budget) == pytest.approx(value)
    assert curve.budgets[0] == pytest.approx(all_costs.min())
    assert curve.value[-1] == pytest.approx(values.max(axis=1).mean())
    assert curve.matches_full_at == pytest.approx(all_costs[all_values >= values[:, -1].mean() - 1e-9].min())


def test_curve_is_concave_rising_and_reached_by_its_shares():
    curve = quick(random_rows())
    n_budgets = len(curve.budgets)
    assert curve.shares.shape == (n_budgets, len(ROUTES))
    assert len(curve.value) == len(curve.mixture) == len(curve.random) == n_budgets
    assert (np.diff(curve.budgets) > 0).all()
    assert (np.diff(curve.value[:-1]) > 0).all()
    slopes = np.diff(curve.value) / np.diff(curve.budgets)
    assert (np.diff(slopes) <= 1e-9 * slopes[:-1]).all()
    np.testing.assert_allclose(curve.shares.sum(axis=1), 1)
    # A route costs the same on every sequence here, so the shares alone give the budget.
    np.testing.assert_allclose((curve.shares @ LAYERS)[:-1], curve.budgets[:-1])
    np.testing.assert_allclose(curve.random_cost, curve.shares @ LAYERS)
    # The curve goes on, flat, to the cost of the full model.
    assert curve.budgets[-1] == 6 > curve.random_cost[-1]
    assert curve.value[-1] == curve.value[-2]


def test_a_large_curve_is_thinned_to_points_of_itself():
    rng = np.random.default_rng(0)
    values, costs = rng.random((500, 8)), np.arange(1, 9)
    whole = read_off(prepare(values, costs), n_points=10_000)
    thin = read_off(prepare(values, costs))
    assert len(whole.budgets) > 201 >= len(thin.budgets) > 150
    at = np.searchsorted(whole.budgets, thin.budgets - 1e-9)
    np.testing.assert_allclose(whole.budgets[at], thin.budgets)
    np.testing.assert_allclose(whole.values[at], thin.values)
    np.testing.assert_array_equal(whole.choices[:, at], thin.choices)
    rows = np.arange(500)[:, None]
    np.testing.assert_allclose(values[rows, thin.choices].mean(axis=0), thin.values)
    np.testing.assert_allclose(costs[thin.choices].mean(axis=0)[:-1], thin.budgets[:-1])
    assert thin.budgets[-1] == 8


def test_equal_scores_go_to_the_cheapest_route():
    curve = quick(make_rows(np.full((7, 4), 0.3)))
    assert curve.matches_full_at == 2
    assert curve.matches_full_interval == (2, 2)
    np.testing.assert_array_equal(curve.budgets, [2, 6])
    np.testing.assert_array_equal(curve.shares, [[1, 0, 0, 0]] * 2)
    assert set(curve.pick(6)) == {0}
    assert curve.table()[0]["share_of_full"] == pytest.approx(1 / 3)


def test_the_star_may_lie_between_breakpoints():
    # Breakpoints at 2, 2.5 and 4.5 layers a sequence; the full model's .5 needs less than the last step, but half of
    # it cannot be bought: the middle route of the first sequence, off the hull, can.
    values = [[0.0, 0.45, 0.0, 1.0], [0.5, 0.55, 0.0, 0.0]]
    curve = quick(make_rows(values))
    all_values, all_costs = every_assignment(np.array(values), np.broadcast_to(LAYERS, (2, 4)))
    assert curve.matches_full_at == all_costs[all_values >= 0.5].min() == 3.0
    assert curve.value_at(curve.matches_full_at) >= 0.5


def test_routes_stand_in_order_of_cost_and_picks_follow_the_sequences():
    rows = random_rows(9)
    order = np.random.default_rng(1).permutation(len(rows["route"]))
    curve = quick({name: column[order] for name, column in rows.items()})
    assert curve.routes[0] == "ee:2"
    assert set(curve.routes[1:3]) == {"uls:3", "rls:3@0"}
    assert curve.routes[3] == "full"
    picked = curve.pick(3.0)
    total = 0.0
    for sequence, route in zip(curve.sequence_ids, np.array(curve.routes)[picked], strict=True):
        total += rows["rouge_l"][(rows["sequence_id"] == sequence) & (rows["route"] == route)].item()
    assert total / 9 == pytest.approx(curve.value_at(3.0))
    assert np.mean([dict(zip(ROUTES, LAYERS, strict=True))[curve.routes[i]] for i in picked]) <= 3.0


@pytest.mark.parametrize("as_table", [pd.DataFrame, pa.table], ids=["pandas", "pyarrow"])
def test_tables_of_any_kind_give_the_same_curve(as_table):
    rows = random_rows(12)
    expected, given_curve = quick(rows), quick(as_table(rows))
    assert given_curve.to_dict() == expected.to_dict()


def test_a_metric_where_less_is_better_is_turned_round():
    rows = random_rows(15)
    rows["kl"] = 1 - rows["rouge_l"]
    up, down = quick(rows), quick(rows, metric="kl")
    assert up.higher_is_better
    assert not down.higher_is_better
    np.testing.assert_allclose(down.value, 1 - up.value)
    np.testing.assert_allclose(down.mixture, 1 - up.mixture)
    np.testing.assert_allclose(down.value_interval, 1 - up.value_interval[:, ::-1])
    assert down.matches_full_at == up.matches_full_at
    assert down.value_at(3) == pytest.approx(1 - up.value_at(3))
    assert down.table()[1]["best_fixed"] == up.table()[1]["best_fixed"]
    assert quick(rows, metric="kl", higher_is_better=True).higher_is_better


def test_weighting_by_tokens_weighs_costs_and_not_values():
    rows = random_rows(6)
    curve = quick(rows, weight_by="new_tokens")
    values, weights = rows["rouge_l"].reshape(6, 4), np.arange(1, 7)
    picked = curve.pick(3.5)
    assert np.average(np.array(LAYERS)[picked], weights=weights) <= 3.5
    assert curve.value_at(3.5) == pytest.approx(values[np.arange(6), picked].mean())
    choices = np.array(list(itertools.product(range(4), repeat=6)))
    spent = np.average(np.array(LAYERS)[choices], axis=1, weights=weights)
    best = values[np.arange(6), choices].mean(axis=1)[spent <= 3.5].max()
    assert curve.value_at(3.5) == pytest.approx(best)
    assert curve.full_cost == 6


def test_mixture_is_the_hull_of_the_fixed_routes_and_no_better_than_the_oracle():
    curve = quick(random_rows())
    fixed = {route.route: route for route in curve.fixed}
    assert fixed["full"].value == pytest.approx(curve.full_value)
    assert fixed["full"].cost == curve.full_cost == 6
    assert fixed["uls:3"].low <= fixed["uls:3"].value <= fixed["uls:3"].high
    assert (curve.mixture <= curve.value + 1e-12).all()
    assert (curve.random <= curve.mixture + 1e-12).all()
    at_cheapest = np.interp(2, curve.budgets, curve.mixture)
    assert at_cheapest == pytest.approx(fixed["ee:2"].value)


def test_mixture_is_empty_below_the_cheapest_fixed_route():
    values = [[0.1, 0.2], [0.1, 0.2]]
    curve = quick(make_rows(values, [[1, 5], [5, 1]], ("a", "full")))
    assert curve.budgets[0] == 1
    assert np.isnan(curve.mixture[0])


def test_permuted_scores_show_luck():
    # Every route is equally good on a given sequence: knowing the sequence gains nothing, unrelated scores do.
    quality = np.linspace(0, 1, 50)[:, None]
    curve = quick(make_rows(np.tile(quality, (1, 4))), n_permutations=5)
    assert curve.matches_full_at == curve.permuted_matches_full_at == 2
    assert curve.value[-1] == pytest.approx(0.5)
    assert 0.75 < curve.permuted[-1] < 0.85  # the best of four draws from 0..1 is 0.8 in the mean
    assert curve.permuted[0] == pytest.approx(0.5)
    # Scores that do not differ between sequences have no luck in them.
    steady = quick(make_rows(np.tile([0.1, 0.4, 0.2, 0.5], (50, 1))), n_permutations=3)
    np.testing.assert_allclose(steady.permuted, steady.value)
    assert steady.permuted_matches_full_at == pytest.approx(steady.matches_full_at)


def test_bootstrap_covers_the_estimate_and_narrows_with_more_sequences():
    small, large = (quick(random_rows(n), n_bootstrap=200, confidence=0.9) for n in (30, 1000))
    for curve in (small, large):
        low, high = curve.value_interval.T
        assert (low <= curve.value).all()
        assert (curve.value <= high).all()
        assert curve.matches_full_interval[0] <= curve.matches_full_at <= curve.matches_full_interval[1]
    width = np.diff(small.value_interval)[-1] / np.diff(large.value_interval)[-1]
    assert 3 < width < 11  # sqrt(1000 / 30) is 5.8
    # At the largest budget the value is a plain mean, whose interval is known.
    best = large.scores.values.max(axis=1)
    assert np.diff(large.value_interval[-1]) == pytest.approx(2 * 1.645 * best.std() / np.sqrt(1000), rel=0.25)


def test_same_seed_same_intervals():
    rows = random_rows(20)
    assert quick(rows, seed=4).to_dict() == quick(rows, seed=4).to_dict()
    assert quick(rows, seed=4).matches_full_interval != quick(rows, seed=5).matches_full_interval


def test_without_full_route_bootstrap_or_permutations():
    rows = random_rows(10)
    keep = rows["route"] != "full"
    curve = quick({name: column[keep] for name, column in rows.items()}, n_bootstrap=0, n_permutations=0)
    assert curve.matches_full_at is None
    assert curve.full_value is None
    assert curve.value_interval is None
    assert curve.permuted is None
    assert [row["point"] for row in curve.table()] == ["25%", "50%", "75%"]
    assert curve.table()[0]["oracle"] is None  # .75 of a layer, below the cheapest route


def test_headline_table_agrees_with_the_curve():
    curve = quick(random_rows())
    star, quarter, half, _ = curve.table()
    assert star["budget"] == curve.matches_full_at
    assert (star["budget_low"], star["budget_high"]) == curve.matches_full_interval
    assert star["oracle"] >= star["full"] == curve.full_value
    assert quarter["oracle"] is None  # 1.5 layers
    assert quarter["mixture"] is None
    assert half["oracle"] == curve.value_at(3)
    assert half["best_fixed"] in {"uls:3", "rls:3@0"}
    assert half["best_fixed_value"] <= half["mixture"] + 1e-12 <= half["oracle"] + 1e-9


def test_storage_round_trip_through_json():
    curve = quick(make_rows([[0.1, 0.2], [0.3, 0.2]], [[1, 5], [5, 1]], ("a", "full")), weight_by="new_tokens")
    assert np.isnan(curve.mixture).any()
    text = json.dumps(curve.to_dict(), allow_nan=False)
    restored = OracleCurve.from_dict(json.loads(text))
    assert restored.to_dict() == curve.to_dict()
    np.testing.assert_array_equal(restored.mixture, curve.mixture)
    np.testing.assert_array_equal(restored.pick(2), curve.pick(2))
    assert restored.table() == curve.table()


@pytest.mark.parametrize("broken", [{}, {"scores": 3}, {"budgets": "x"}])
def test_a_foreign_dict_is_refused(broken):
    plain = quick(random_rows(3)).to_dict() | broken if broken else broken
    with pytest.raises(InputError, match="not a stored oracle curve"):
        OracleCurve.from_dict(plain)


def test_a_stored_curve_with_an_unknown_field_is_refused():
    with pytest.raises(InputError, match="colour"):
        OracleCurve.from_dict(quick(random_rows(3)).to_dict() | {"colour": "red"})


def with_changed(column, index, value):
    rows = random_rows(3)
    rows[column] = rows[column].astype(object)
    rows[column][index] = value
    return rows


def without_row(index):
    return {name: np.delete(column, index) for name, column in random_rows(3).items()}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (with_changed("rouge_l", 5, np.nan), {}, r"'rouge_l' holds NaN.*sequence 's1', route 'uls:3'"),
        (with_changed("layers_run", 0, np.inf), {}, "'layers_run' holds NaN or infinite"),
        (with_changed("rouge_l", 0, "good"), {}, "'rouge_l' does not hold numbers"),
        (with_changed("layers_run", 0, -1), {}, "negative number"),
        (with_changed("sequence_id", 0, None), {}, "'sequence_id' has empty entries"),
        (with_changed("route", 1, "ee:2"), {}, "several rows for sequence 's0', route 'ee:2'"),
        (without_row(6), {}, "no row for sequence 's1', route 'rls:3@0'"),
        ({name: column[:0] for name, column in random_rows(3).items()}, {}, "no rows"),
        (random_rows(3), {"metric": "bleu"}, "no column 'bleu'; it has sequence_id, route"),
        (pd.DataFrame(random_rows(3)), {"cost": "flops"}, "no column 'flops'; it has sequence_id"),
        (pa.table(random_rows(3)), {"cost": "flops"}, "no column 'flops'; it has sequence_id"),
        ([1, 2], {}, "no column 'sequence_id'; give a dict of arrays"),
        (random_rows(3) | {"rouge_l": np.ones(5)}, {}, "'rouge_l' and 'sequence_id' differ in length"),
        (random_rows(3) | {"route": np.array(["full"])}, {}, "'sequence_id' and 'route' differ in length"),
        (random_rows(3), {"full_route": "whole"}, "No row has the route 'whole'"),
        (random_rows(3), {"n_bootstrap": -1}, "Invalid n_bootstrap -1"),
        (random_rows(3), {"n_permutations": 2.5}, "Invalid n_permutations 2.5"),
        (random_rows(3), {"confidence": 95}, "Invalid confidence 95"),
    ],
)
def test_bad_input_is_one_clear_sentence(rows, options, message):
    with pytest.raises(InputError, match=message) as caught:
        oracle(rows, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        oracle(random_rows(3), colour="red")


def test_a_budget_below_the_cheapest_route_is_refused():
    with pytest.raises(InputError, match="mean cost is 2; give at least that"):
        quick(random_rows(5)).pick(1.9)
