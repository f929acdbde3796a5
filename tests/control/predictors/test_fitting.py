"""What holds for every kind: it learns what is there and nothing else, is stored without loss, and refuses bad tables."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load, save

from depthdial.control.predictors.base import LEAST_ROWS
from depthdial.control.predictors.fitting import (
    KINDS,
    choose_kind,
    cross_validated,
    explained,
    fit_predictor,
    restore_predictor,
)
from depthdial.errors import InputError
from tests.control.predictors.tables import GROUPS, features_of, linear, r2

LEARNING = tuple(kind for kind in KINDS if kind != "mean")


@pytest.mark.parametrize(("learner", "least"), [("ridge", 0.95), ("trees", 0.4), ("mlp", 0.7)])
def test_a_linear_signal_is_found_on_rows_that_were_not_learned_from(learner, least):
    features, values = linear(300)
    predictor = fit_predictor(learner, features[:200], values[:200], groups=GROUPS)
    assert r2(predictor.predict(features[200:])[:, :2], values[200:, :2]).min() > least


def test_noise_is_predicted_as_about_its_mean(kind):
    values = np.random.default_rng(3).normal(size=(150, 2))
    predicted = cross_validated(kind, features_of(150), values, groups=GROUPS, n_folds=3)
    assert all(-0.1 < found < 0.1 for found in explained(predicted, values))


def test_a_constant_route_is_predicted_exactly(kind):
    features, values = linear(64)
    values[:, 2] = 0.1  # whose mean, summed up, is not 0.1
    predictor = fit_predictor(kind, features, values, groups=GROUPS)
    assert (predictor.predict(features_of(50, seed=9))[:, 2] == 0.1).all()


def test_routes_that_are_all_constant_are_predicted_exactly_too(kind):
    features = features_of(40)
    predictor = fit_predictor(kind, features, np.full((40, 2), 0.7))
    assert (predictor.predict(features) == 0.7).all()
    restored = restore_predictor(kind, predictor.settings(), predictor.arrays())
    assert (restored.predict(features) == 0.7).all()


def test_the_same_seed_gives_the_same_bits_and_nothing_global_is_touched(kind):
    import torch

    features, values = linear(80)
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()
    first, second = (fit_predictor(kind, features, values, groups=GROUPS, seed=5) for _ in range(2))
    assert first.settings() == second.settings()
    assert all((array == second.arrays()[name]).all() for name, array in first.arrays().items())
    assert (before[0] == np.random.get_state()[1]).all()
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == torch.get_num_threads()


def test_what_is_stored_predicts_the_same_bits(kind):
    features, values = linear(120)
    predictor = fit_predictor(kind, features, values, groups=GROUPS)
    restored = restore_predictor(kind, predictor.settings(), load(save(predictor.arrays())))
    new = features_of(30, seed=4)
    assert (restored.predict(new) == predictor.predict(new)).all()
    assert (restored.kind, restored.n_features, restored.n_routes) == (kind, 82, 3)
    assert restored.settings() == predictor.settings()


def test_what_is_damaged_is_not_restored(kind):
    features, values = linear(64)
    predictor = fit_predictor(kind, features, values, groups=GROUPS)
    settings, arrays = predictor.settings(), predictor.arrays()
    for name, array in arrays.items():
        spoilt = [{key: kept for key, kept in arrays.items() if key != name}, {**arrays, name: array[None]}]
        spoilt.append({**arrays, name: array.astype(np.float16)})
        if array.dtype.kind == "f" and array.size:
            spoilt.append({**arrays, name: np.full_like(array, np.nan)})
        for broken in spoilt:
            with pytest.raises(InputError, match="damaged"):
                restore_predictor(kind, settings, broken)
    for name in ("n_features", "n_routes"):
        # Nothing that the mean holds has the size of the features.
        other = () if (kind, name) == ("mean", "n_features") else (settings[name] + 1,)
        for value in (None, "3", 0, True, *other):
            with pytest.raises(InputError, match="damaged"):
                restore_predictor(kind, {**settings, name: value}, arrays)


def test_predicting_refuses_features_that_are_others(kind):
    features, values = linear(64)
    predictor = fit_predictor(kind, features, values)
    with pytest.raises(InputError, match="fitted on 82 features, got 81"):
        predictor.predict(features[:, 1:])
    for wrong in (np.where(np.arange(82) == 3, np.nan, features), features.astype(str), features[0]):
        with pytest.raises(InputError, match="Features must be"):
            predictor.predict(wrong)
    assert predictor.predict(features[:0]).shape == (0, 3)
    assert np.allclose(predictor.predict(features[:1]), predictor.predict(features)[:1])


@pytest.mark.parametrize("learner", LEARNING)
def test_constant_features_are_refused(learner):
    with pytest.raises(InputError, match="constant features: nothing to predict from"):
        fit_predictor(learner, np.full((40, 3), 0.1), linear(40)[1])


def test_tables_that_cannot_be_are_refused(kind):
    features, values = linear(LEAST_ROWS)
    holed = values.copy()
    holed[4, 1] = np.inf
    for message, bad_features, bad_values in (
        (f"There are {LEAST_ROWS - 1} rows", features[1:], values[1:]),
        ("Features have 31 rows but values have 32", features[1:], values),
        ("Values must be finite, but row 4, column 1 is inf", features, holed),
        ("Values must be a table", features, values[:, 0]),
        ("at least one column", features[:, :0], values),
    ):
        for learn in (fit_predictor, cross_validated):
            with pytest.raises(InputError, match=message):
                learn(kind, bad_features, bad_values)


@pytest.mark.parametrize(
    "groups",
    [[slice(0, 82), slice(5, 6)], [slice(0, 81)], [slice(0, 40), slice(41, 82)], [slice(0, 82, 2)], [slice(0, 90)], []],
)
def test_groups_part_the_columns(groups):
    with pytest.raises(InputError, match="must part the 82 features"):
        fit_predictor("ridge", *linear(40), groups=groups)


def test_options_that_cannot_be_are_refused():
    features, values = linear(40)
    for run in (fit_predictor, cross_validated):
        with pytest.raises(InputError, match="Unknown kind of predictor 'forest': use ridge, trees, mlp or mean"):
            run("forest", features, values)
        with pytest.raises(InputError, match="Invalid seed"):
            run("mean", features, values, seed=-1)
    for n_folds in (1, 41, 2.0, True):
        with pytest.raises(InputError, match="Invalid n_folds"):
            cross_validated("mean", features, values, n_folds=n_folds)
    with pytest.raises(InputError, match="Unknown kind"):
        choose_kind(features, values, ("mean", "forest"))
    with pytest.raises(InputError, match="Unknown kind"):
        restore_predictor("forest", {}, {})


def test_a_row_is_predicted_without_having_been_learned_from():
    features, values = linear(60)
    before = cross_validated("ridge", features, values, groups=GROUPS)
    values[7, 0] += 100.0
    after = cross_validated("ridge", features, values, groups=GROUPS)
    assert (after[7] == before[7]).all()
    assert not np.allclose(after[:, 0], before[:, 0])


def test_the_kind_with_the_least_error_is_chosen_and_scores_say_why():
    features, values = linear(100)
    kind, mse, predictions = choose_kind(features, values, ("mean", "ridge"), groups=GROUPS)
    assert kind == "ridge"
    assert list(mse) == ["mean", "ridge"] and mse["ridge"] < mse["mean"]
    assert mse["ridge"] == pytest.approx(((predictions["ridge"] - values) ** 2).mean())
    mean, ridge = (explained(predicted, values) for predicted in predictions.values())
    assert ridge[2] is None and ridge[0] is not None and ridge[0] > 0.9
    assert mean[0] is not None and -0.1 < mean[0] <= 0


def test_of_equal_kinds_the_first_is_chosen():
    features, values = features_of(40), np.ones((40, 2))
    assert choose_kind(features, values, ("mean", "ridge"))[0] == "mean"
    assert choose_kind(features, values, ("ridge", "mean"))[0] == "ridge"


def test_importing_loads_numpy_alone():
    code = (
        "import sys, depthdial.control.predictors.fitting; "
        "print(sorted({'torch', 'lightgbm', 'scipy', 'pandas', 'transformers'} & sys.modules.keys()))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
