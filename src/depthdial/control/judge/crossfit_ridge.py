"""Linear guesses of each route's quality from other answers to the same prompt: all that a predictable oracle knows."""

from __future__ import annotations

import numpy as np

# Penalties tried, as multiples of the number of rows: from almost none to almost the mean.
_PENALTIES = np.append(np.logspace(-5, 2, 15), np.inf)


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
    fold = rng.permutation(len(values)) % n_folds
    guesses = np.empty(values.shape)
    for number in range(n_folds):
        held_out = fold == number
        guesses[held_out] = _ridge(means[~held_out], values[~held_out], means[held_out])
    return guesses


def _ridge(known: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n_asked, n_routes) predictions, the penalty chosen for each route by its leave-one-out error."""
    n = len(known)
    centre, spread = known.mean(axis=0), known.std(axis=0)
    varies = spread > 1e-12 * np.abs(known).max(initial=1.0)
    scale = np.where(varies, spread, 1.0)
    inputs, wanted = (known - centre) / scale * varies, values - values.mean(axis=0)
    left, singular, right = np.linalg.svd(inputs, full_matrices=False)
    # Directions without variance hold rounding alone.
    power = np.where(singular > 1e-10 * max(singular.max(initial=0.0), 1e-300), singular**2, 0.0)
    kept = np.divide(power, power + n * _PENALTIES[:, None], out=np.zeros((len(_PENALTIES), len(power))), where=power > 0)
    projected = left.T @ wanted
    errors = []
    for shares in kept:
        own = np.minimum(1 / n + (left**2 * shares).sum(axis=1), 1 - 1e-9)
        residual = wanted - left @ (shares[:, None] * projected)
        errors.append(((residual / (1 - own)[:, None]) ** 2).mean(axis=0))
    best = kept[np.argmin(errors, axis=0)].T
    inverse = np.divide(1.0, singular, out=np.zeros(len(singular)), where=power > 0)
    weights = right.T @ (best * projected * inverse[:, None])
    return values.mean(axis=0) + (asked - centre) / scale * varies @ weights
