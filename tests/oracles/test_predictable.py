"""The oracle split into what is predictable and what is luck, on simulated tables whose truth is known."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.oracles.crossfit import choosing_sets, shrunk
from depthdial.oracles.exact.knapsack import prepare
from depthdial.oracles.oracle import oracle
from depthdial.oracles.predictable import PredictableCurve, predictable_oracle

LAYERS = np.array([10, 15, 20, 25, 30])
ROUTES = ("ee:10", "uls:15", "uls:20", "uls:25", "full")
QUALITY = np.array([0.10, 0.20, 0.27, 0.30, 0.32])
NOISE = 0.1


def make_rows(values, costs=LAYERS, routes=ROUTES):
    """Rows of an array (n_sequences, n_routes, n_samples)."""
    i, r, s = (index.ravel() for index in np.indices(values.shape))
    return {
        "sequence_id": np.array([f"s{number}" for number in i]),
        "route": np.array(routes)[r],
        "sample": s,
        "layers_run": np.broadcast_to(costs, values.shape[:2])[i, r],
        "rouge_l": values.ravel(),
    }


def expected_scores(kind, n=150, seed=0):
    """(n_sequences, n_routes) means that the samples are drawn around."""
    rng = np.random.default_rng(seed)
    difficulty, fit = rng.normal(size=(n, 1)), rng.normal(size=(n, 5))
    return {
        "luck": np.tile(QUALITY, (n, 1)),
        "difficulty": QUALITY + 0.15 * difficulty,
        "mixed": QUALITY + 0.1 * difficulty + 0.06 * fit,
    }[kind]


def drawn(means, n_samples, seed, noise=NOISE):
    return means[:, :, None] + noise * np.random.default_rng(seed).normal(size=(*means.shape, n_samples))


def quick(values, **options):
    rows = make_rows(values) if isinstance(values, np.ndarray) else values
    return predictable_oracle(rows, **{"n_bootstrap": 0, "n_permutations": 0, "n_splits": 6} | options)


def truth(means, budgets, costs=LAYERS):
    """The oracle that knows every expected score."""
    problem = prepare(means, costs)
    return np.interp(budgets, problem.breakpoint_costs, problem.breakpoint_values)


def averaged(kind, n_samples, n_tables=8, n=150, **options):
    """Curves of several tables drawn around the same means: their mean and its standard error, by name."""
    means = expected_scores(kind, n)
    curves = [quick(drawn(means, n_samples, seed), **options) for seed in range(n_tables)]
    found = {}
    for name in ("predictable", "plug_in", "random", "mixture", "permuted"):
        if getattr(curves[0], name) is not None:
            table = np.array([getattr(curve, name) for curve in curves])
            found[name] = table.mean(axis=0), table.std(axis=0, ddof=1) / np.sqrt(n_tables)
    return curves[0].budgets, truth(means, curves[0].budgets), found


# Known truths


def test_of_pure_luck_nothing_is_predictable_and_the_oracle_sees_plenty():
    _, known, found = averaged("luck", 8, n_permutations=3)
    mixture, error = found["mixture"]
    for name in ("predictable", "permuted", "random"):
        curve = found[name][0] if found[name][0].ndim == 1 else found[name][0][-1]
        assert np.abs(curve - mixture).max() < 0.003  # Monte-Carlo; and the truth is the mixture too
    assert np.abs(mixture - known).max() < 4 * error.max()
    inside = slice(20, -1)
    assert (found["plug_in"][0][0] - mixture)[inside].min() > 0.05
    assert (found["plug_in"][0][-1] - mixture)[inside].min() > 0.01  # of eight samples too, though less


def test_without_shrinking_the_choice_believes_in_luck_and_falls_below_the_mixture():
    budgets, known, found = averaged("luck", 8, shrink=False)
    below = (known - found["predictable"][0][-1])[np.searchsorted(budgets, [15, 20, 29])]
    assert below.min() > 0.008


def test_difficulty_alone_is_not_worth_knowing():
    _, known, found = averaged("difficulty", 8, n_permutations=3)
    mixture = found["mixture"][0]
    assert np.abs(known - mixture).max() < 0.01  # a harder sequence is as much harder on every route
    assert np.abs(found["predictable"][0][-1] - mixture).max() < 0.004
    # Shuffled difficulties no longer cancel: whoever reads this line as a floor is wrong.
    assert (found["permuted"][0] - mixture)[20:].min() > 0.05


@pytest.mark.parametrize("shrink", [True, False])
def test_without_noise_everything_is_predictable(shrink):
    means = expected_scores("mixed", 60)
    curve = quick(np.repeat(means[:, :, None], 4, axis=2), shrink=shrink)
    exact = oracle(make_rows(means[:, :, None]), n_bootstrap=0, n_permutations=0)
    for curves in (curve.predictable, curve.plug_in):
        for one in curves:
            np.testing.assert_allclose(one, truth(means, curve.budgets), rtol=1e-9)
    np.testing.assert_allclose(curve.predictable[-1], np.interp(curve.budgets, *exact.breakpoints), rtol=1e-9)
    stars = [*curve.predictable_matches_full_at, *curve.plug_in_matches_full_at]
    np.testing.assert_allclose(stars, exact.matches_full_at, atol=0.1)


@pytest.mark.parametrize("shrink", [True, False])
def test_truth_lies_between_the_predictable_and_the_plug_in_oracle_for_every_number_of_samples(shrink):
    _, known, found = averaged("mixed", 8, shrink=shrink)
    (low, low_error), (high, high_error) = found["predictable"], found["plug_in"]
    assert len(low) == 3 and len(high) == 4  # 1, 2, 4; and all 8
    inside = slice(20, -1)
    assert ((known - low) / low_error)[:, inside].min() > 3
    assert ((high - known) / high_error)[:, inside].min() > 3
    # More samples: both close in on it, everywhere.
    assert np.diff(low, axis=0)[:, inside].min() > 0
    assert np.diff(high, axis=0)[:, inside].max() < 0


def test_with_many_samples_both_reach_the_truth():
    _, known, found = averaged("mixed", 128, n_tables=2, n_splits=1)
    gap = known - found["mixture"][0]
    assert gap[20:].min() > 0.02
    for name in ("predictable", "plug_in"):
        assert np.abs(found[name][0][-1] - known).max() < 0.004


def test_more_routes_are_more_tickets():
    """Copies of one route add luck to the plug-in oracle, and nothing to what is predictable."""
    gains = {}
    for copies in (1, 6):
        routes, layers = ("short", *(f"copy-{i}" for i in range(copies)), "full"), [10, *[20] * copies, 30]
        means = np.tile([0.1, *[0.27] * copies, 0.32], (200, 1))
        rows = make_rows(drawn(means, 8, seed=1), layers, routes)
        curve = quick(rows)
        at = curve.at(20)
        gains[copies] = at["plug_in"] - at["mixture"], at["predictable"] - at["mixture"]
    assert gains[6][0] > gains[1][0] + 0.05
    assert abs(gains[6][1]) < 0.01 and abs(gains[1][1]) < 0.01


def test_the_interval_covers_the_held_out_curve_and_narrows_with_more_sequences():
    widths = {}
    for n in (60, 960):
        curve = quick(drawn(expected_scores("mixed", n), 4, seed=3), n_bootstrap=200)
        low, high = curve.predictable_interval.T
        assert (low <= curve.predictable[-1] + 1e-3).all() and (curve.predictable[-1] <= high + 1e-3).all()
        widths[n] = (high - low)[-1]
        fixed = curve.fixed[-1]
        assert fixed.route == "full" and fixed.low < fixed.value == curve.full_value < fixed.high
    assert 2.5 < widths[60] / widths[960] < 6.5  # sqrt(16) is 4
    assert curve.matches_full_interval[0] <= curve.matches_full_at <= curve.matches_full_interval[1]


def test_intervals_cover_the_expected_curve_about_as_often_as_they_say():
    hits = []
    for seed in range(40):
        means = expected_scores("mixed", 80, seed=seed)
        curve = quick(drawn(means, 4, seed=100 + seed), n_bootstrap=100, n_splits=3)
        low, high = curve.predictable_interval[100]
        hits.append((low, high))
    # What the curve estimates: its mean over many tables and sequences.
    centre = np.mean([(low + high) / 2 for low, high in hits])
    assert 0.8 <= np.mean([low <= centre <= high for low, high in hits]) <= 1


# The parts


@pytest.mark.parametrize(("n_samples", "size"), [(2, 1), (8, 1), (8, 2), (8, 4), (6, 3), (10, 4), (8, 8)])
def test_sets_to_choose_on(n_samples, size):
    sets = choosing_sets(n_samples, size, 5, np.random.default_rng(0))
    assert len(set(sets)) == len(sets)
    assert all(len(set(chosen)) == size and set(chosen) <= set(range(n_samples)) for chosen in sets)
    if 2 * size == n_samples:  # both halves choose
        assert all(tuple(sorted(set(range(n_samples)) - set(chosen))) in sets for chosen in sets)
    if size == 1:
        assert sorted(sets) == [(i,) for i in range(n_samples)]


def test_guesses_are_the_means_without_noise_and_all_alike_on_noise_alone():
    means = expected_scores("mixed", 100)
    np.testing.assert_allclose(shrunk(np.repeat(means[:, :, None], 3, axis=2)), means)
    np.testing.assert_array_equal(shrunk(drawn(means, 1, 0)), drawn(means, 1, 0)[:, :, 0])
    luck = shrunk(drawn(expected_scores("luck", 400), 4, 0))
    assert luck.std(axis=0).max() < 0.3 * NOISE / 2


def test_guesses_are_closer_to_the_truth_than_the_means():
    means = expected_scores("mixed", 300)
    samples = drawn(means, 4, 1)
    error = [((guess - means) ** 2).mean() for guess in (shrunk(samples), samples.mean(axis=2))]
    assert error[0] < 0.85 * error[1]


# Properties


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 5), st.sampled_from([2, 4, 6])),
    factor=st.floats(0.1, 10),
    offset=st.floats(-5, 5),
    shrink=st.booleans(),
)
def test_whatever_the_table(seed, shape, factor, offset, shrink):
    rng = np.random.default_rng(seed)
    values, costs = rng.random(shape), rng.integers(0, 7, shape[:2])
    routes = [*(f"r{i}" for i in range(shape[1] - 1)), "full"]
    rows = make_rows(values, costs, routes)
    curve = quick(rows, shrink=shrink, n_permutations=1, n_bootstrap=5)
    assert (np.diff(curve.budgets) > 0).all()
    assert curve.budgets[0] == pytest.approx(costs.min(axis=1).mean())
    assert curve.budgets[-1] == pytest.approx(costs.mean(axis=0).max())
    assert curve.chosen_on[-1] == shape[2] // 2 and curve.plugged_in == (*curve.chosen_on, shape[2])
    assert (np.diff(curve.plug_in, axis=1) >= -1e-9).all()  # whoever is paid what it chose on gains by more budget
    # An oracle that is paid the average of all samples is never better than one that chooses on them.
    assert (curve.predictable[-1] <= np.max(values, axis=1).mean() + 1e-9).all()
    mixed = ~np.isnan(curve.mixture)
    assert (curve.plug_in[-1][mixed] >= curve.mixture[mixed] - 1e-9).all()
    # The order of a cell's rows does not matter, nor what scores are counted in.
    order = rng.permutation(shape[2])
    shuffled = {name: column.reshape(shape)[:, :, order].ravel() for name, column in rows.items()}
    assert quick(shuffled, shrink=shrink, n_permutations=1, n_bootstrap=5).to_dict() == curve.to_dict()
    scaled = quick(rows | {"rouge_l": factor * rows["rouge_l"] + offset}, shrink=shrink, n_permutations=1)
    np.testing.assert_allclose(scaled.plug_in, factor * curve.plug_in + offset, atol=1e-9, rtol=1e-9)
    np.testing.assert_allclose(scaled.predictable, factor * curve.predictable + offset, atol=1e-8, rtol=1e-8)


def test_same_seed_same_curve():
    values = drawn(expected_scores("mixed", 20), 8, 0)
    options = {"n_bootstrap": 20, "n_permutations": 2}
    assert quick(values, seed=4, **options).to_dict() == quick(values, seed=4, **options).to_dict()
    assert quick(values, seed=4, **options).predictable.tolist() != quick(values, seed=5, **options).predictable.tolist()


@pytest.mark.parametrize("as_table", [pd.DataFrame, pa.table], ids=["pandas", "pyarrow"])
def test_tables_of_any_kind_give_the_same_curve(as_table):
    rows = make_rows(drawn(expected_scores("mixed", 10), 4, 0))
    assert quick(as_table(rows)).to_dict() == quick(rows).to_dict()


def test_the_plug_in_of_one_sample_is_the_papers_oracle():
    values = drawn(expected_scores("mixed", 30), 2, 0)
    curve = quick(values)
    papers = [oracle(make_rows(values[:, :, [s]]), n_bootstrap=0, n_permutations=0) for s in (0, 1)]
    for budget in (12, 17.5, 26):
        expected = np.mean([np.interp(budget, *one.breakpoints) for one in papers])
        assert np.interp(budget, curve.budgets, curve.plug_in[0]) == pytest.approx(expected, abs=1e-3)
    assert curve.plugged_in == (1, 2)


# What is told of it


def test_the_table_is_read_off_the_curves():
    curve = quick(drawn(expected_scores("mixed"), 8, 0), n_bootstrap=50, n_permutations=2)
    table = {row["point"]: row for row in curve.table()}
    assert list(table) == [
        *("predictable matches full", "plug-in matches full", "mixture matches full"),
        *("50%", "75%"),  # a quarter is 7.5 layers, below the cheapest route
    ]
    star = table["predictable matches full"]
    assert star["budget"] == curve.matches_full_at
    assert (star["budget_low"], star["budget_high"]) == curve.matches_full_interval
    assert star["predictable"] == pytest.approx(curve.full_value) == star["full"]
    assert table["mixture matches full"]["budget"] == pytest.approx(30)
    half = table["50%"]
    assert half["budget"] == 15 and half["share_of_full"] == 0.5
    assert half["mixture"] <= half["predictable"] <= half["plug_in_all"] <= half["plug_in"]
    assert half["predictable_low"] <= half["predictable"] <= half["predictable_high"]
    assert curve.at(15)["plug_in"] == half["plug_in"]
    with pytest.raises(InputError, match="mean cost is 10; give at least that"):
        curve.at(9)
    with pytest.raises(InputError, match="budget nan"):
        curve.at(float("nan"))


def test_without_a_full_route_there_is_no_star():
    values = drawn(expected_scores("mixed", 10), 2, 0)
    curve = quick(make_rows(values, routes=("a", "b", "c", "d", "e")), n_bootstrap=5)
    assert curve.matches_full_at is curve.mixture_matches_full_at is curve.matches_full_interval is curve.full_value is None
    assert [row["point"] for row in curve.table()] == ["50%", "75%"]


def test_a_star_that_is_never_reached_is_open():
    values = drawn(np.tile([0.1, 0.5], (20, 1)), 4, 0, noise=0.05)
    values[:, 1] += np.where(np.arange(4) % 2, 0.5, -0.5)  # of either half, full seems the worse or is the better by luck
    curve = quick(make_rows(values, (10, 20), ("a", "full")), n_bootstrap=20, shrink=False)
    assert curve.predictable_matches_full_at[0] is None
    json.dumps(curve.to_dict(), allow_nan=False)


def test_storage_round_trip_through_json():
    values = drawn(expected_scores("mixed", 12), 4, 0)
    costs = np.where(np.arange(12)[:, None] % 2, LAYERS, LAYERS[::-1])
    curve = quick(make_rows(values, costs), n_bootstrap=10, n_permutations=1)
    assert np.isnan(curve.mixture).any()
    restored = PredictableCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert restored.to_dict() == curve.to_dict() and restored.table() == curve.table()
    np.testing.assert_array_equal(restored.mixture, curve.mixture)
    for broken in ({}, {"budgets": "x"}, {"colour": "red"}):
        with pytest.raises(InputError, match="not a stored predictable curve"):
            PredictableCurve.from_dict(curve.to_dict() | broken if broken else {})


# Bad input


def rows_with(column, index, value):
    rows = make_rows(drawn(expected_scores("mixed", 3), 4, 0))
    rows[column] = rows[column].astype(object)
    rows[column][index] = value
    return rows


def rows_of(n_samples):
    return make_rows(drawn(expected_scores("mixed", 3), n_samples, 0))


def greedy():
    return {name: column for name, column in rows_of(1).items() if name != "sample"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (greedy(), {}, "hold one answer of each route.*samples=8"),
        (greedy() | {"sample": np.full(15, None)}, {}, "hold one answer of each route"),
        (pa.table(greedy() | {"sample": pa.nulls(15, pa.int64())}), {}, "hold one answer of each route"),
        (rows_of(1), {}, "hold 1 sampled answer of each route.*even number"),
        (rows_of(3), {}, "hold 3 sampled answers of each route.*even number"),
        ({name: column[1:] for name, column in rows_of(4).items()}, {}, "no row for sequence 's0', route 'ee:10', sample 0"),
        (rows_with("sample", 1, 0), {}, "several rows for sequence 's0', route 'ee:10', sample 0"),
        (rows_with("sample", 1, None), {}, "'sample' has empty entries"),
        (rows_with("rouge_l", 5, np.nan), {}, "'rouge_l' holds NaN.*sequence 's0', route 'uls:15', sample 1"),
        (rows_with("layers_run", 0, 11), {}, "'layers_run' differs between the samples"),
        (rows_of(2), {"cost": "flops"}, "no column 'flops'"),
        (rows_of(2), {"sample": "draw"}, "no column 'draw' with numbers"),
        (rows_of(2), {"full_route": "whole"}, "No row has the route 'whole'"),
        (rows_of(2), {"n_splits": 0}, "Invalid n_splits 0"),
        (rows_of(2), {"n_bootstrap": -1}, "Invalid n_bootstrap -1"),
        (rows_of(2), {"n_permutations": True}, "Invalid n_permutations True"),
        (rows_of(2), {"confidence": 95}, "Invalid confidence 95"),
    ],
)
def test_bad_input_is_one_clear_sentence(rows, options, message):
    with pytest.raises(InputError, match=message) as caught:
        predictable_oracle(rows, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        predictable_oracle(rows_of(2), colour="red")
