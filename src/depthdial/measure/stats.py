"""Means with their 95% intervals, over sequences; over the samples of each of them first, where there are several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


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
    half = student_t(confidence, data.size - 1) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return Interval(mean, mean - half, mean + half, int(data.size))


def mean_over_samples(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row for each (sequence, route) of a table that may hold several samples of it, in order of appearance.

    Samples of one sequence are no independent sequences: an interval over sequences is taken on their means.

    Args:
        columns: (n_rows,) arrays by name, `sequence_id` and `route` among them.

    Returns:
        Numbers as their means (NaN where one is), texts as those of the first sample; no column `sample`.
    """
    places: dict[tuple[object, object], int] = {}
    keys = zip(columns["sequence_id"].tolist(), columns["route"].tolist(), strict=True)
    codes = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.intp)
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    reduced = {}
    for name, column in columns.items():
        is_number = column.dtype.kind in "iuf" and name not in ("sequence_id", "route")
        reduced[name] = np.bincount(codes, weights=column) / counts if is_number else column[first]
    reduced.pop("sample", None)
    return reduced


def student_t(confidence: float, degrees: int) -> float:
    """Two-sided quantile of Student's t, by the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5).

    Within 1% of the exact value from 3 degrees of freedom on; for 1 and 2 the closed forms are used.
    """
    p = 0.5 + confidence / 2
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        a = 2 * p - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(p)
    n = degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
