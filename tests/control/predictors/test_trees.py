"""Trees: walked as LightGBM walks them, none where nothing is to be learned, and no endless walks in damaged files."""

import sys

import lightgbm
import numpy as np
import pytest

from depthdial.control.predictors import trees
from depthdial.control.predictors.fitting import fit_predictor, restore_predictor
from depthdial.errors import InputError
from tests.control.predictors.tables import GROUPS, features_of, linear


def test_the_walk_is_lightgbms(monkeypatch):
    grown = []
    train = lightgbm.train
    monkeypatch.setattr(lightgbm, "train", lambda *given: grown.append(train(*given)) or grown[-1])
    features, values = linear(200)
    predictor = fit_predictor("trees", features, values, groups=GROUPS)
    new = np.concatenate([features, features_of(100, seed=3), np.zeros((1, 82))])
    inputs = predictor.projection.apply(new)
    assert len(grown) == 2
    for route, booster in enumerate(grown):
        assert booster.num_trees() > 5
        assert np.abs(booster.predict(inputs) - predictor.predict(new)[:, route]).max() < 1e-6
    monkeypatch.setattr(trees, "_WALK_CELLS", 500)  # many rows are walked a few at a time
    assert (predictor.predict(new) == restored(predictor).predict(new)).all()


def restored(predictor, **arrays):
    return restore_predictor("trees", predictor.settings(), {**predictor.arrays(), **arrays})


def test_where_trees_do_no_better_than_the_mean_there_are_none():
    values = np.random.default_rng(0).normal(size=(40, 1))  # too few rows for a leaf of twenty to be split
    predictor = fit_predictor("trees", features_of(40), values)
    assert predictor.settings()["n_trees"] == [0]
    assert (predictor.predict(features_of(9)) == values.mean()).all()


def test_trees_that_lead_nowhere_are_refused():
    predictor = fit_predictor("trees", *linear(100), groups=GROUPS)
    arrays = predictor.arrays()
    first = int(arrays["root"][0])

    def changed(name, place, value):
        array = arrays[name].copy()
        array[place] = value
        return {name: array}

    for damage in (
        changed("left", first, first),  # a circle
        changed("right", first, len(arrays["left"])),
        changed("left", first, -1),
        changed("feature", first, 10_000),
        changed("root", 0, -1),
        changed("first_tree", -1, 1),
    ):
        with pytest.raises(InputError, match="damaged"):
            restored(predictor, **damage)


def test_without_lightgbm_the_extra_is_named_and_what_was_fitted_still_predicts(monkeypatch):
    features, values = linear(64)
    predictor = fit_predictor("trees", features, values)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match=r"pip install 'depthdial\[trees\]'"):
        fit_predictor("trees", features, values)
    assert (restored(predictor).predict(features) == predictor.predict(features)).all()
