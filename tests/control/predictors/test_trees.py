"""Trees: LightGBM's own, none where nothing is to be learned, and damaged or older ones are refused."""

import sys

import lightgbm
import numpy as np
import pytest

from depthdial.control.predictors.fitting import fit_predictor, restore_predictor
from depthdial.errors import InputError
from tests.control.predictors.tables import GROUPS, features_of, linear


def test_the_predictions_are_lightgbms(monkeypatch):
    grown = []
    train = lightgbm.train
    monkeypatch.setattr(lightgbm, "train", lambda *given: grown.append(train(*given)) or grown[-1])
    features, values = linear(200)
    predictor = fit_predictor("trees", features, values, groups=GROUPS)
    new = np.concatenate([features, features_of(100, seed=3), np.zeros((1, 82))])
    inputs = new @ predictor.matrix + predictor.offset
    assert len(grown) == 2
    for route, booster in enumerate(grown):
        assert booster.num_trees() > 5
        assert (booster.predict(inputs) == predictor.predict(new)[:, route]).all()
    assert (predictor.predict(new) == restored(predictor).predict(new)).all()


def restored(predictor, **arrays):
    return restore_predictor("trees", predictor.settings(), {**predictor.arrays(), **arrays})


def test_where_trees_do_no_better_than_the_mean_there_are_none():
    values = np.random.default_rng(0).normal(size=(40, 1))  # too few rows for a leaf of twenty to be split
    predictor = fit_predictor("trees", features_of(40), values)
    assert predictor.settings()["models"] == [None]
    assert (predictor.predict(features_of(9)) == values.mean()).all()


def test_trees_that_were_changed_and_those_of_before_are_refused():
    predictor = fit_predictor("trees", *linear(100), groups=GROUPS)
    arrays = predictor.arrays()
    for place, value in ((200, 0), (-1, 255)):
        changed = arrays["model.0"].copy()
        changed[place] = value
        with pytest.raises(InputError, match="damaged"):
            restored(predictor, **{"model.0": changed})
    swapped = {**arrays, "model.0": arrays["model.1"], "model.1": arrays["model.0"]}
    for settings, kept in ((predictor.settings() | {"models": predictor.settings()["models"][:2]}, arrays), (None, swapped)):
        with pytest.raises(InputError, match="damaged"):
            restore_predictor("trees", settings or predictor.settings(), kept)
    with pytest.raises(InputError, match="of an older version, which walked them itself: fit them again"):
        restore_predictor("trees", predictor.settings() | {"n_trees": [3, 3, 0]}, {**arrays, "root": np.zeros(6)})


def test_without_lightgbm_the_extra_is_named(monkeypatch):
    features, values = linear(100)
    predictor = fit_predictor("trees", features, values)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match=r"pip install 'depthdial\[trees\]'"):
        fit_predictor("trees", features, values)
    with pytest.raises(InputError, match=r"pip install 'depthdial\[trees\]'"):
        restored(predictor)
