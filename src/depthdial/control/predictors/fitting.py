"""Fit a predictor, put one back together, score kinds against each other by cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.checks import choice, whole
from depthdial.control.predictors.base import Predictor, checked_tables, constant_columns
from depthdial.control.predictors.constant import MeanPredictor
from depthdial.control.predictors.mlp import MlpPredictor
from depthdial.control.predictors.ridge import RidgePredictor
from depthdial.control.predictors.trees import TreesPredictor
from depthdial.errors import InputError

_CLASSES = {cls.kind: cls for cls in (RidgePredictor, TreesPredictor, MlpPredictor, MeanPredictor)}
KINDS = tuple(_CLASSES)


@dataclass(frozen=True)
class KindScore:
    """How well a kind predicts rows that it did not see.

    Attributes:
        mse: mean squared error over rows and routes.
        r2: by route, against the mean over all rows; None for a route whose value is constant.
    """

    kind: str
    mse: float
    r2: tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class KindChoice:
    """The kind with the least cross-validated error.

    Attributes:
        kind: the chosen one.
        scores: of every kind, in the order in which they were given.
        predictions: by kind, (n, r) out-of-fold predictions.
    """

    kind: str
    scores: tuple[KindScore, ...]
    predictions: Mapping[str, np.ndarray]


def fit_predictor(
    kind: str,
    features: np.ndarray,
    values: np.ndarray,
    *,
    groups: Sequence[slice] | None = None,
    seed: int = 0,
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
    choice("kind of predictor", kind, KINDS)
    return _CLASSES[kind].fit(*checked_tables(features, values, groups), _checked_seed(seed))


def restore_predictor(kind: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Predictor:
    """The predictor whose kind, `settings()` and `arrays()` were stored; it predicts the same, bit for bit.

    Raises:
        InputError: for an unknown kind, or settings and arrays that are damaged.
    """
    choice("kind of predictor", kind, KINDS)
    return _CLASSES[kind].restore(settings, arrays)


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

    Raises:
        InputError: as `fit_predictor`, and for a number of folds that cannot be.
    """
    choice("kind of predictor", kind, KINDS)
    table, targets, parts = checked_tables(features, values, groups)
    predicted = np.empty_like(targets)
    for learned, held_out in _folds(len(table), n_folds, _checked_seed(seed)):
        predictor = _CLASSES[kind].fit(table[learned], targets[learned], parts, seed)
        predicted[held_out] = predictor.predict(table[held_out])
    return predicted


def choose_kind(
    features: np.ndarray,
    values: np.ndarray,
    kinds: Sequence[str] = KINDS,
    *,
    n_folds: int = 5,
    groups: Sequence[slice] | None = None,
    seed: int = 0,
) -> KindChoice:
    """The kind with the least cross-validated squared error; of equal ones the one that was given first.

    Raises:
        InputError: as `cross_validated`, and if there is no kind to choose from.
    """
    if not kinds:
        raise InputError(f"There is no kind of predictor to choose from: give one or more of {', '.join(KINDS)}.")
    for kind in kinds:  # all of them before the first is fitted, which may take a minute
        choice("kind of predictor", kind, KINDS)
    options: dict[str, Any] = {"n_folds": n_folds, "groups": groups, "seed": seed}
    predictions = {kind: cross_validated(kind, features, values, **options) for kind in kinds}
    scores = tuple(score(kind, predicted, np.asarray(values, dtype=float)) for kind, predicted in predictions.items())
    return KindChoice(min(scores, key=lambda score: score.mse).kind, scores, predictions)


def score(kind: str, predicted: np.ndarray, values: np.ndarray) -> KindScore:
    """The score of (n, r) predictions of (n, r) values."""
    errors = np.mean((predicted - values) ** 2, axis=0)
    constant, variances = constant_columns(values), values.var(axis=0)
    r2 = tuple(None if constant[i] else float(1 - errors[i] / variances[i]) for i in range(len(errors)))
    return KindScore(kind, float(errors.mean()), r2)


def _folds(n: int, n_folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each fold the rows to learn from and the rows held out."""
    whole("n_folds", n_folds, 2, n)
    fold = np.random.default_rng([seed, 1]).permutation(n) % n_folds
    for number in range(n_folds):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _checked_seed(seed: int) -> int:
    return int(whole("seed", seed, 0))
