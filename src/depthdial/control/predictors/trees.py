"""Gradient-boosted trees on principal components and scalars, by LightGBM; kept as its text, so nothing is unpickled.

One boosted model for each route, small and slow-learning, with as many trees as did best on inner folds: none where trees
do no better than the mean. (Friedman, Annals of Statistics 29, 2001; LightGBM: Ke et al., NeurIPS 2017.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np

from depthdial.control.predictors.base import Predictor, column_means, constant_columns, damaged, stored
from depthdial.control.predictors.projection import Projection
from depthdial.errors import InputError

N_COMPONENTS = 64
_INNER_FOLDS, _MOST_TREES, _PATIENCE_TREES = 3, 200, 20
# A tree without a split errs as the mean does, but for the single precision that LightGBM holds values in.
_LEAST_GAIN = 1e-6
_GROWING = {
    "objective": "regression",
    "metric": "l2",
    "learning_rate": 0.08,
    "max_bin": 63,
    "num_leaves": 8,
    "max_depth": 4,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "use_missing": False,  # features are finite, here and at predicting
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}


@dataclass(frozen=True, eq=False)
class TreesPredictor(Predictor):
    """The trees of each route.

    Attributes:
        matrix, offset: the projection of f features to k inputs.
        base: (r,) what is predicted where there are no trees; trees hold the mean themselves.
        models: of each route LightGBM's text; None where there are no trees.
    """

    kind = "trees"
    shapes: ClassVar = {"matrix": ("n_features", "n_inputs"), "offset": ("n_inputs",), "base": ("n_routes",)}
    matrix: np.ndarray
    offset: np.ndarray
    base: np.ndarray
    models: tuple[str | None, ...]

    @cached_property
    def _boosters(self) -> dict[int, Any]:
        grown = {route: text for route, text in enumerate(self.models) if text is not None}
        return {route: _lightgbm().Booster(model_str=text) for route, text in grown.items()}

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> Self:
        """Raises InputError if every column of the features is constant, or LightGBM is not installed."""
        lightgbm = _lightgbm()
        projection = Projection.of(features, groups, N_COMPONENTS)
        inputs, constant = projection.apply(features), constant_columns(values)
        models = (None if constant[i] else _grown(lightgbm, inputs, one, seed) for i, one in enumerate(values.T))
        return cls(*projection, column_means(values), tuple(models))

    def _predicted(self, features: np.ndarray) -> np.ndarray:
        inputs = features @ self.matrix + self.offset
        found = np.tile(self.base, (len(inputs), 1))
        for route, booster in self._boosters.items() if len(inputs) else ():
            found[:, route] = booster.predict(inputs, num_threads=1)
        return found

    def settings(self) -> dict[str, Any]:
        return {**self.sizes, "models": [None if text is None else _digest(text) for text in self.models]}

    def arrays(self) -> dict[str, np.ndarray]:
        texts = {f"model.{i}": text for i, text in enumerate(self.models) if text is not None}
        return super().arrays() | {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        if "n_trees" in settings:
            raise InputError("The stored trees are of an older version, which walked them itself: fit them again.")
        digests = stored(settings, "models", list)
        names = [None if digest is None else f"model.{i}" for i, digest in enumerate(digests)]
        found = cls.stored_arrays(settings, arrays, [name for name in names if name])
        models = tuple(None if name is None else found.pop(name).tobytes().decode(errors="replace") for name in names)
        predictor = cls(**found, models=models)
        # LightGBM trusts a model that it reads: a damaged one could lead its trees anywhere.
        if len(models) != predictor.n_routes or predictor.settings()["models"] != digests:
            raise damaged("its trees are not those that were stored")
        if any(booster.num_feature() != len(predictor.offset) for booster in predictor._boosters.values()):
            raise damaged(f"its trees do not look at {len(predictor.offset)} inputs")
        return predictor


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError as error:
        raise InputError("Trees need LightGBM: pip install 'depthdial[trees]', or fit another kind.") from error
    return lightgbm


def _grown(lightgbm: ModuleType, inputs: np.ndarray, values: np.ndarray, seed: int) -> str | None:
    """One route's trees as LightGBM's text; None if no number of trees beats the mean on the inner folds."""
    growing = {**_GROWING, "seed": seed % 2**31}
    part = np.random.default_rng([seed, 2]).permutation(len(inputs)) % _INNER_FOLDS
    folds = [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(_INNER_FOLDS)]
    found = lightgbm.cv(
        growing,
        lightgbm.Dataset(inputs, values, params=growing),
        num_boost_round=_MOST_TREES,
        folds=folds,
        callbacks=[lightgbm.early_stopping(_PATIENCE_TREES, verbose=False)],
    )
    errors = np.array(found["valid l2-mean"])
    of_means = np.mean([np.mean((values[inner] - values[outer].mean()) ** 2) for outer, inner in folds])
    if errors.min() >= of_means * (1 - _LEAST_GAIN):
        return None
    grown = lightgbm.train(growing, lightgbm.Dataset(inputs, values, params=growing), int(errors.argmin()) + 1)
    return str(grown.model_to_string())
