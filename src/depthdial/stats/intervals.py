"""Means with their 95% intervals, over sequences; over the samples of each of them first, where there are several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

_Z = 1.959964  # 95% of a normal distribution lie so many standard deviations around its mean


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are NaN for a single value."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values (one per sequence).

    Raises:
        ValueError: if there is no value.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("mean_interval needs at least one value.")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(data.size - 1, (1 + confidence) / 2)) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return Interval(mean, mean - half, mean + half, int(data.size))


def share_interval(count: int, n: int) -> Interval:
    """The share `count / n` with Wilson's 95% interval (1927), which stays within 0 and 1, also for few or no counts.

    Raises:
        ValueError: unless 0 <= count <= n and n is at least 1.

    >>> str(share_interval(2, 24))
    '0.083 [0.023, 0.258]'
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"share_interval takes a count of 0 to n, and n of at least 1, not {count} of {n}.")
    share, spread = count / n, _Z**2 / n
    middle = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # Of no count, or of all, an end is the share itself, but for rounding.
    low = min((middle - half) / (1 + spread), share) if count else 0.0
    return Interval(share, low, max((middle + half) / (1 + spread), share), n)


def known_interval(values: np.ndarray) -> Interval | None:
    """`mean_interval` of the values that are there; None where all are NaN."""
    known = values[np.isfinite(values)]
    return mean_interval(known) if len(known) else None


def ratio_interval(values: np.ndarray, bases: np.ndarray, confidence: float = 0.95) -> Interval | None:
    """The mean of `values` over that of `bases`, (n,) of the same sequences, with the delta method's paired interval.

    Pairs of which either is NaN are left out; None where there is no other, or the mean of the bases is not above 0.

    >>> str(ratio_interval(np.array([0.5, 1.0, 1.5]), np.array([1.0, 2.0, 3.0])))
    '0.500 [0.500, 0.500]'
    """
    known = np.isfinite(values) & np.isfinite(bases)
    mine, others = values[known], bases[known]
    if not len(mine) or others.mean() <= 0:
        return None
    ratio = float(mine.mean() / others.mean())
    left = mean_interval((mine - ratio * others) / others.mean(), confidence)
    return Interval(ratio, ratio + left.low, ratio + left.high, left.n)


def coded(entries: Iterable[Hashable]) -> tuple[list[Any], np.ndarray]:
    """The distinct entries in order of appearance, and (n,) the number of each entry's own.

    >>> coded("abca")
    (['a', 'b', 'c'], array([0, 1, 2, 0]))
    """
    numbers: dict[Any, int] = {}
    codes = np.fromiter((numbers.setdefault(entry, len(numbers)) for entry in entries), dtype=np.intp)
    return list(numbers), codes


def mean_over_samples(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row for each (sequence, route) of a table that may hold several samples of it, in order of appearance.

    Samples of one sequence are no independent sequences: an interval over sequences is taken on their means. Of (n_rows,)
    columns, `sequence_id` and `route` among them, numbers become their means (NaN where one is), texts those of the first
    sample, and `sample` is dropped.
    """
    codes = coded(zip(columns["sequence_id"].tolist(), columns["route"].tolist(), strict=True))[1]
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    reduced = {}
    for name, column in columns.items():
        is_number = column.dtype.kind in "iuf" and name not in ("sequence_id", "route")
        reduced[name] = np.bincount(codes, weights=column) / counts if is_number else column[first]
    reduced.pop("sample", None)
    return reduced
