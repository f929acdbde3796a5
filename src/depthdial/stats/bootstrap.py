"""The bootstrap over sequences: resamples with replacement, ratios of sums in each of them, percentile intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_CELLS_AT_ONCE = 4_000_000


def resamples(rng: np.random.Generator, n_draws: int, n: int, weights: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """How often each of n sequences is drawn, (size, n), in chunks that add up to `n_draws` resamples of n sequences.

    Args:
        weights: (n,), or (n, k) of which every column must weigh something in a resample: others are drawn again.

    >>> rng = np.random.default_rng(0)
    >>> [counts.sum(axis=1).tolist() for counts in resamples(rng, 3, 5)]
    [[5.0, 5.0, 5.0]]
    """
    chunk = max(1, _CELLS_AT_ONCE // n)
    for start in range(0, n_draws, chunk):
        yield _counts(rng, min(chunk, n_draws - start), n, weights)


def _counts(rng: np.random.Generator, size: int, n: int, weights: np.ndarray | None) -> np.ndarray:
    drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
    if weights is not None:
        weightless = np.flatnonzero((counts @ weights.reshape(n, -1) == 0).any(axis=1))
        if len(weightless):
            counts[weightless] = _counts(rng, len(weightless), n, weights)
    return counts


def ratios(counts: np.ndarray, table: np.ndarray, bases: np.ndarray | None = None) -> np.ndarray:
    """(n_draws, ..) sums of a table (n, ..) over the sum of `bases` (n,) in each resample; without bases its means."""
    sums = np.tensordot(counts, table, axes=1)
    total = counts.sum(axis=1) if bases is None else counts @ bases
    return sums / total.reshape(-1, *[1] * (sums.ndim - 1))


def percentiles(draws: np.ndarray, confidence: float, *, method: str = "linear") -> np.ndarray:
    """(.., 2) ends of the percentile interval over the first axis of (n_draws, ..).

    >>> percentiles(np.arange(101.0), 0.9).round(6).tolist()
    [5.0, 95.0]
    """
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.moveaxis(np.quantile(draws, tails, axis=0, method=method), 0, -1)  # type: ignore[call-overload]
