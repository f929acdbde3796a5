"""Linear guesses of each route's quality from other answers to the same prompt: all that a predictable oracle knows."""

from __future__ import annotations

import numpy as np

from depthdial.control.predictors.constant import MeanPredictor
from depthdial.control.predictors.projection import varying
from depthdial.control.predictors.ridge import RidgePredictor


def guessed_values(values: np.ndarray, known: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Cross-fitted guesses of `values`, (n, n_routes): no sequence's own value is used for its guess.

    Each route is regressed on the mean known quality of all routes, by ridge regression on standardised means whose penalty
    the training rows choose by leave-one-out error. All routes, for what is known of one tells of the others: the noise of
    a few samples is averaged out and a difficulty that they share is seen. The regression also takes out what sampled
    answers are worse by on average.

    Args:
        values: (n, n_routes) quality on the answer that is paid.
        known: (n, n_routes, n_samples) quality on other answers.
        n_folds: parts of the sequences; each is guessed from the others. At least 2, at most n.
    """
    means = known.mean(axis=2)
    groups, fold = (slice(0, means.shape[1]),), rng.permutation(len(values)) % n_folds
    guesses = np.empty(values.shape)
    for number in range(n_folds):
        held_out = fold == number
        learner = RidgePredictor if varying(means[~held_out]).any() else MeanPredictor
        guesses[held_out] = learner.fit(means[~held_out], values[~held_out], groups, 0).predict(means[held_out])
    return guesses
