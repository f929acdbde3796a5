"""Layer-steps as cost: equal to brute force on ratios of sums, budgets as people give them, and the alternatives by name."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import depthdial as dd
from depthdial.errors import InputError
from depthdial.oracles.costs import budget_in_units
from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.oracles.predictable import PredictableCurve, predictable_oracle

LAYERS, ROUTES = np.array([2, 4, 6]), ("ee:2", "uls:4", "full")


def make_rows(values, tokens, **columns):
    """Rows of (n, 3) values and tokens of each route's own answer."""
    values, tokens = np.asarray(values, dtype=float), np.asarray(tokens)
    n = len(values)
    rows = {
        "sequence_id": np.repeat([f"s{i}" for i in range(n)], 3),
        "route": np.tile(ROUTES, n),
        "rouge_l": values.ravel(),
        "layers_run": np.tile(LAYERS, n),
        "n_layers": np.full(3 * n, 6),
        "new_tokens": tokens.ravel(),
    }
    return rows | columns


def some_rows(n=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = make_rows(rng.random((n, 3)) * [0.5, 0.8, 1], rng.integers(1, 30, (n, 3)))
    return rows | {"decode_sec": rng.random(3 * n)}


def quick(rows, **options):
    return oracle(rows, **{"n_bootstrap": 0, "n_permutations": 0} | options)


def brute_force(values, layer_steps):
    """Mean value and share of the full route's layer-steps of every assignment."""
    n = len(values)
    choices = np.array(list(itertools.product(range(3), repeat=n)))
    rows = np.arange(n)
    return values[rows, choices].mean(axis=1), layer_steps[rows, choices].sum(axis=1) / layer_steps[:, -1].sum()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_oracle_is_brute_force_on_layer_steps(data):
    n = data.draw(st.integers(1, 5))
    cells = st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=n, max_size=n)
    tokens = np.array(data.draw(cells))  # zero-step sequences, and answers longer than the full model's
    tokens[0, 2] = max(tokens[0, 2], 2)
    values = np.array(data.draw(cells)) / 10
    steps = data.draw(st.sampled_from(["own", "full"]))
    counted = np.broadcast_to(tokens[:, 2:], tokens.shape) if steps == "full" else tokens
    layer_steps = LAYERS * (counted - 1)
    curve = quick(make_rows(values, tokens), steps=steps)
    all_values, all_costs = brute_force(values, layer_steps)
    assert curve.cost == "layer_steps" and curve.full_cost == 1.0
    for budget, value in zip(curve.budgets, curve.value, strict=True):
        assert value == pytest.approx(all_values[all_costs <= budget + 1e-9].max())
    for share in (*np.unique(all_costs)[:4], 0.5, 0.75, 1.0):
        if all_costs.min() <= share <= 1:
            picked = np.array([ROUTES.index(curve.routes[i]) for i in curve.pick(share)])
            assert layer_steps[np.arange(n), picked].sum() <= share * layer_steps[:, -1].sum() * (1 + 1e-9)
            assert curve.value_at(share) == pytest.approx(all_values[all_costs <= share + 1e-9].max())
    assert curve.matches_full_at == pytest.approx(all_costs[all_values >= values[:, -1].mean() - 1e-9].min())
    order = [curve.routes.index(name) for name in ROUTES]
    fixed = np.array([curve.fixed[i].cost for i in order])
    np.testing.assert_allclose(fixed, layer_steps.sum(axis=0) / layer_steps[:, -1].sum())


def test_the_ratio_is_taken_anew_in_every_resample():
    rows = some_rows(25)
    curve = oracle(rows, n_bootstrap=300, n_permutations=0, seed=3)
    # A resample by hand: sequences drawn, the whole oracle solved again.
    draws = np.random.default_rng([3, 0]).integers(0, 25, (300, 25))
    stars = []
    for drawn in draws[:60]:
        resampled = {name: np.asarray(column).reshape(25, 3)[drawn].ravel() for name, column in rows.items()}
        again = quick(resampled | {"sequence_id": np.repeat(np.arange(25), 3)})
        assert again.full_cost == 1.0
        stars.append(again.matches_full_at)
    low, high = curve.matches_full_interval
    assert low < np.median(stars) < high
    assert np.subtract(*np.quantile(stars, [0.9, 0.1])) == pytest.approx(high - low, rel=0.5)


def test_everything_is_on_one_cost():
    rows = some_rows()
    curve = oracle(rows, n_bootstrap=20, n_permutations=2)
    fixed = {one.route: one for one in curve.fixed}
    assert fixed["full"].cost == curve.full_cost == 1.0
    np.testing.assert_allclose(curve.random_cost, curve.shares @ [one.cost for one in curve.fixed])
    assert (curve.mixture <= curve.value + 1e-12)[~np.isnan(curve.mixture)].all()
    assert curve.permuted[0] >= 0 and len(curve.permuted) == len(curve.budgets)


def test_budgets_are_shares_percentages_and_counts_of_layers():
    curve = quick(some_rows())
    expected = curve.pick(0.5)
    for same in ("50%", "0.5", 3, "3", 3.0, np.float64(0.5), " 50 % "):
        np.testing.assert_array_equal(curve.pick(same), expected)
    np.testing.assert_array_equal(curve.pick(budget=6), curve.pick(1))
    for budget, value in zip(curve.budgets, curve.value, strict=True):
        assert curve.value_at(budget) == pytest.approx(value)  # also where a budget is above 1
    by_layers = quick(some_rows(), cost="layers")
    np.testing.assert_array_equal(by_layers.pick("50%"), by_layers.pick(3))


@pytest.mark.parametrize("budget", ["much", "", "50%%", "3 layers", None, [1], True, "0x3", "%"])
@pytest.mark.parametrize("cost", ["layer_steps", "layers"])
def test_nonsense_budgets_are_refused_in_a_sentence(budget, cost):
    with pytest.raises(InputError, match="is not a number or a percentage: give") as caught:
        quick(some_rows(3), cost=cost).pick(budget)
    assert repr(budget) in str(caught.value) and "\n" not in str(caught.value)


def test_budgets_out_of_reach():
    curve = quick(some_rows())
    for budget in (0.01, "1%", -1, 1e-9):
        with pytest.raises(InputError, match="below the cheapest assignment"):
            curve.pick(budget)
    with pytest.raises(InputError, match="NaN"):
        curve.pick(float("nan"))
    np.testing.assert_array_equal(curve.pick(np.inf), curve.pick("400%"))
    with pytest.raises(InputError, match="the rows do not say how many"):
        budget_in_units(27, cost="layer_steps", full_cost=1.0, most=1.0, n_layers=None)
    assert budget_in_units("27", cost="layer_steps", full_cost=1.0, most=1.0, n_layers=30) == 0.9


def test_without_steps_every_sequence_counts_the_same_and_the_curve_says_so():
    rows = some_rows(12)
    plain = {name: rows[name] for name in ("sequence_id", "route", "rouge_l", "layers_run")}
    for given_rows in (plain, plain | {"new_tokens": np.full(36, np.nan)}, plain | {"new_tokens": np.ones(36)}):
        curve = quick(given_rows)
        assert curve.cost == "layers" and curve.full_cost == 6 and "per sequence" in curve.cost_unit
        np.testing.assert_allclose(curve.value, quick(rows, cost="layers_run").value)
    assert quick(rows, cost="layers_run").cost == "layers"


def test_rows_without_an_answer_take_the_steps_of_the_full_answer():
    rows = some_rows(9)
    tokens = rows["new_tokens"].astype(float)
    forced = np.where(rows["route"] == "full", tokens, np.nan)
    np.testing.assert_allclose(quick(rows | {"new_tokens": forced}).value, quick(rows, steps="full").value)
    for table in (
        pa.table(rows | {"new_tokens": pa.array(forced, from_pandas=True)}),
        pd.DataFrame(rows | {"new_tokens": forced}),
    ):
        assert quick(table).full_cost == 1.0
    missing = tokens.copy()
    missing[2] = missing[0] = np.nan  # the first sequence's full answer, too
    with pytest.raises(InputError, match=r"'new_tokens' holds NaN.*sequence 's0'"):
        quick(rows | {"new_tokens": missing})


def test_without_a_full_route_shares_are_of_all_layers_over_the_mean_steps():
    rows = some_rows(10)
    keep = rows["route"] != "full"
    some = {name: column[keep] for name, column in rows.items()}
    curve = quick(some)
    steps = (some["new_tokens"] - 1).reshape(10, 2)
    expected = (steps * LAYERS[:2]).sum(axis=0) / (6 * steps.mean(axis=1).sum())
    assert sorted(one.cost for one in curve.fixed) == pytest.approx(sorted(expected))
    assert curve.full_cost is None and curve.cost == "layer_steps"
    with pytest.raises(InputError, match="steps='full' needs its answers"):
        quick(some, steps="full")
    with pytest.raises(InputError, match="Unknown steps 'mine'"):
        quick(rows, steps="mine")


def test_a_full_route_without_steps_beside_routes_that_have_some_is_refused():
    rows = make_rows(np.ones((2, 3)), [[5, 5, 1], [3, 3, 1]])
    with pytest.raises(InputError, match="The full route's layer-steps add up to 0"):
        quick(rows)
    assert quick(rows, cost="layers").full_cost == 6


def test_measured_ms_and_any_column_stay_costs_by_name():
    rows = some_rows()
    by_ms, by_column = quick(rows, cost="ms"), quick(rows, cost="decode_sec")
    np.testing.assert_allclose(by_ms.budgets, 1e3 * by_column.budgets)
    assert (by_ms.cost, by_column.cost) == ("ms", "decode_sec")
    with pytest.raises(InputError, match="no column 'decode_sec'"):
        quick({name: column for name, column in rows.items() if name != "decode_sec"}, cost="ms")


def test_a_column_that_weighs_costs_replaces_the_steps():
    rows = some_rows(8)
    assert quick(rows, weight_by="new_tokens").to_dict() == quick(rows, weight_by="new_tokens", cost="layers").to_dict()


def test_quality_weighted_by_the_full_answers_tokens():
    rows = some_rows(6)
    curve = oracle(rows, quality="tokens", n_bootstrap=30, n_permutations=2)
    values, tokens = rows["rouge_l"].reshape(6, 3), rows["new_tokens"].reshape(6, 3)
    layer_steps = LAYERS * (tokens - 1)
    assert curve.full_value == pytest.approx(np.average(values[:, 2], weights=tokens[:, 2]))
    choices = np.array(list(itertools.product(range(3), repeat=6)))
    mean = np.average(values[np.arange(6), choices], axis=1, weights=tokens[:, 2])
    spent = layer_steps[np.arange(6), choices].sum(axis=1) / layer_steps[:, 2].sum()
    assert curve.value_at(0.7) == pytest.approx(mean[spent <= 0.7].max())
    low, high = curve.value_interval.T
    assert (low <= high).all()
    with pytest.raises(InputError, match="Unknown quality 'words'"):
        quick(rows, quality="words")
    with pytest.raises(InputError, match="do not say how many tokens"):
        quick({name: column for name, column in rows.items() if name != "new_tokens"}, quality="tokens")


def test_the_table_shows_layers_ms_and_both_means_beside():
    curve = quick(some_rows())
    row = curve.table()[0]
    chosen = curve.pick(row["budget"])
    rows = np.arange(len(chosen))
    assert row["layers"] == pytest.approx(
        np.array([dict(zip(ROUTES, LAYERS, strict=True))[curve.routes[i]] for i in chosen]).mean()
    )
    assert row["ms"] == pytest.approx(curve.scores.ms[rows, chosen].mean())
    assert row["mean_over_sequences"] == pytest.approx(row["oracle"])
    assert row["by_tokens"] == pytest.approx(np.average(curve.scores.values[rows, chosen], weights=curve.scores.tokens))


def test_storage_keeps_the_cost_and_documents_from_before_are_per_sequence():
    curve = quick(some_rows(7), quality="tokens")
    again = OracleCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert again.to_dict() == curve.to_dict() and again.value_at("60%") == curve.value_at("60%")
    old = quick(some_rows(7), cost="layers").to_dict()
    old["cost"] = "layers_run"
    del old["quality"]
    old["scores"] = {name: old["scores"][name] for name in ("sequence_ids", "routes", "values", "costs", "weights")}
    restored = OracleCurve.from_dict(old)
    assert restored.cost == "layers" and restored.value_at(4) == quick(some_rows(7), cost="layers").value_at(4)


def test_pandas_tables_of_the_curves():
    curve = oracle(some_rows(), n_bootstrap=10, n_permutations=1)
    frame = curve.to_pandas()
    assert {"budget", "value", "value_low", "mixture", "random", "permuted", "share of full"} <= set(frame.columns)
    np.testing.assert_array_equal(frame["budget"], curve.budgets)


def test_a_metric_with_gaps_names_those_without():
    rows = some_rows(3) | {"agreement": np.ones(9), "kl": np.zeros(9), "rouge_l": np.full(9, np.nan)}
    with pytest.raises(InputError, match=r"'rouge_l' holds NaN.* take another metric, these rows hold all of kl, agreement"):
        quick(rows)


# Sampled answers


def sampled_rows(n=30, m=4, seed=0):
    rng = np.random.default_rng(seed)
    i, r, k = (index.ravel() for index in np.indices((n, 3, m)))
    return {
        "sequence_id": i,
        "route": np.array(ROUTES)[r],
        "sample": k,
        "rouge_l": rng.random(n * 3 * m) * np.array([0.5, 0.8, 1.0])[r],
        "layers_run": LAYERS[r],
        "n_layers": np.full(n * 3 * m, 6),
        "new_tokens": rng.integers(1, 20, n * 3 * m),
    }


def test_the_predictable_oracle_spends_the_mean_layer_steps_of_a_cell():
    rows = sampled_rows()
    curve = predictable_oracle(rows, n_bootstrap=40, n_permutations=1, n_splits=3)
    spent = (LAYERS[:, None] * (rows["new_tokens"].reshape(30, 3, 4) - 1)).mean(axis=2).sum(axis=0)
    assert sorted(one.cost for one in curve.fixed) == pytest.approx(sorted(spent / spent[2]))
    assert curve.cost == "layer_steps" and curve.full_cost == 1.0 and curve.budgets[0] < 1
    assert curve.at("80%") == pytest.approx(curve.at(0.8)) == curve.at("4.8")
    document = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert PredictableCurve.from_dict(document).to_dict() == curve.to_dict()
    old = {name: value for name, value in document.items() if name not in ("higher_is_better", "n_layers")}
    assert PredictableCurve.from_dict(old | {"cost": "layers_run"}).cost == "layers"
    assert "predictable on 2" in curve.to_pandas()
    with pytest.raises(InputError, match="'new_tokens' differs between the samples"):
        predictable_oracle(rows, cost="new_tokens")


def test_names_are_public():
    assert dd.oracle is oracle and dd.predictable_oracle is predictable_oracle


@pytest.mark.parametrize(("steps", "over_mixture"), [("own", 0.1116), ("full", 0.0796)])
def test_on_committed_rows_the_oracle_gains_what_layer_steps_say(steps, over_mixture):
    folder = Path(__file__).parents[2] / "experiments" / "controller" / "alpaca"
    scores = pq.read_table(folder / "predictions.parquet").to_pandas().rename(columns={"measured": "agreement"})
    columns = ["sequence_id", "route", "new_tokens", "n_layers", "layers_run"]
    answers = pq.read_table(folder / "rows" / "test-answers.parquet", columns=columns).to_pandas()
    rows = scores.merge(answers, on=["sequence_id", "route"])
    curve = quick(rows, metric="agreement", steps=steps)
    tokens = rows.pivot(index="sequence_id", columns="route", values="new_tokens")[list(curve.routes)].to_numpy() - 1
    layers = rows.pivot(index="sequence_id", columns="route", values="layers_run")[list(curve.routes)].to_numpy()
    full = curve.routes.index("full")
    spent = (layers * (tokens if steps == "own" else tokens[:, [full]])).sum(axis=0)
    assert [one.cost for one in curve.fixed] == pytest.approx(spent / spent[full])
    gain = curve.value_at("70%") - curve.mixture_at(np.array([0.7]))[0]
    assert gain == pytest.approx(over_mixture, abs=1e-4)
