"""Means with their 95% intervals, over sequences; over the samples of each of them first, where there are several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit


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
    """Two-sided quantile of Student's t: 2.776 for 95% and 4 degrees of freedom."""
    return float(stdtrit(degrees, (1 + confidence) / 2))


def student_t_tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's t; small tails keep their digits, which 1 minus a distribution function would lose.

    Raises:
        ValueError: unless `degrees` is positive and both are numbers.
    """
    if math.isnan(t) or not degrees > 0:
        raise ValueError(f"Student's t needs a number and positive degrees of freedom, not {t} and {degrees}.")
    return float(stdtr(degrees, -t))
