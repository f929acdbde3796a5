"""Fit a predictor, put one back together, score kinds against each other by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from depthdial.checks import choice, whole
from depthdial.control.predictors.base import Predictor, checked_tables, constant_columns
from depthdial.control.predictors.constant import MeanPredictor
from depthdial.control.predictors.mlp import MlpPredictor
from depthdial.control.predictors.ridge import RidgePredictor
from depthdial.control.predictors.trees import TreesPredictor

_CLASSES: dict[str, type[Predictor]] = {
    cls.kind: cls for cls in (RidgePredictor, TreesPredictor, MlpPredictor, MeanPredictor)
}
KINDS = tuple(_CLASSES)


def fit_predictor(
    kind: str, features: np.ndarray, values: np.ndarray, *, groups: Sequence[slice] | None = None, seed: int = 0
) -> Predictor:
    """Learn to predict the quality of every route.

    Args:
        kind: one of KINDS. `mean` ignores the features.
        features: (n, f), finite, n at least LEAST_ROWS.
        values: (n, r) quality of each route, higher is better.
        groups: slices that part the columns into what belongs together, such as scalars and one layer's hidden state; by
            default all columns are one group. Ridge weighs groups alike, trees and MLP take narrow ones as they are and
            principal components of the wide ones.
        seed: of all that is drawn at random. The same seed gives the same bits on the same machine and versions.

    Raises:
        InputError: for an unknown kind, too few rows, tables that do not fit or are not finite, only constant features, or
            trees without LightGBM.
    """
    return _class_of(kind).fit(*checked_tables(features, values, groups), whole("seed", seed, 0))


def restore_predictor(kind: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Predictor:
    """The predictor whose kind, `settings()` and `arrays()` were stored; it predicts the same, bit for bit."""
    return _class_of(kind).restore(settings, arrays)


def cross_validated(
    kind: str,
    features: np.ndarray,
    values: np.ndarray,
    *,
    n_folds: int = 5,
    groups: Sequence[slice] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """(n, r) predictions of each row by a predictor that was fitted without its fold.

    Everything that is learned, standardising, components and hyperparameters too, is learned anew inside each fold. Folds
    depend on n, n_folds and seed alone: kinds and feature sets are compared on the same ones.
    """
    learner = _class_of(kind)
    table, targets, parts = checked_tables(features, values, groups)
    whole("n_folds", n_folds, 2, len(table))
    fold = np.random.default_rng([whole("seed", seed, 0), 1]).permutation(len(table)) % n_folds
    predicted = np.empty_like(targets)
    for number in range(n_folds):
        held_out = fold == number
        predictor = learner.fit(table[~held_out], targets[~held_out], parts, seed)
        predicted[held_out] = predictor.predict(table[held_out])
    return predicted


def choose_kind(
    features: np.ndarray, values: np.ndarray, kinds: Sequence[str], **options: Any
) -> tuple[str, dict[str, float], dict[str, np.ndarray]]:
    """The kind with the least cross-validated squared error; of equal ones the one that was given first.

    Args:
        options: as `cross_validated` takes them, with its errors.

    Returns:
        The kind, and of every kind the mean squared error over rows and routes, and its (n, r) out-of-fold predictions.
    """
    predictions = {kind: cross_validated(kind, features, values, **options) for kind in kinds}
    mse = {kind: float(np.mean((one - values) ** 2, axis=0).mean()) for kind, one in predictions.items()}
    return min(mse, key=mse.__getitem__), mse, predictions


def explained(predicted: np.ndarray, values: np.ndarray) -> tuple[float | None, ...]:
    """R2 by route of (n, r) predictions, against the mean over all rows; None for a route whose value is constant."""
    errors, variances = np.mean((predicted - values) ** 2, axis=0), values.var(axis=0)
    shares = zip(constant_columns(values), errors, variances, strict=True)
    return tuple(None if constant else float(1 - error / variance) for constant, error, variance in shares)


def _class_of(kind: str) -> type[Predictor]:
    choice("kind of predictor", kind, KINDS)
    return _CLASSES[kind]
