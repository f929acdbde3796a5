"""Means with their 95% intervals, over sequences; over the samples of each of them first, where there are several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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


@lru_cache(maxsize=1024)
def student_t(confidence: float, degrees: int) -> float:
    """Two-sided quantile of Student's t: 2.776 for 95% and 4 degrees of freedom.

    The Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5), which is 1% off for few degrees, made exact by Newton's
    method on the distribution function.
    """
    tail = (1 - confidence) / 2
    if degrees == 1:  # the closed form: where there is no mean, the expansion is no good start
        return math.tan(math.pi * (0.5 - tail))
    value = _cornish_fisher(NormalDist().inv_cdf(1 - tail), degrees)
    for _ in range(_NEWTON_STEPS if degrees <= _MANY_DEGREES else 0):
        step = (student_t_tail(value, degrees) - tail) / _t_density(value, degrees)
        value += step
        if abs(step) <= 1e-14 * abs(value):
            break
    return value


def student_t_tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's t; small tails keep their digits, which 1 minus a distribution function would lose.

    Half a regularised incomplete beta function, I_x(n/2, 1/2) with x = n / (n + t^2) (Abramowitz and Stegun 26.7.1).

    Raises:
        ValueError: unless `degrees` is positive and both are numbers.
    """
    if math.isnan(t) or not degrees > 0:
        raise ValueError(f"Student's t needs a number and positive degrees of freedom, not {t} and {degrees}.")
    if t < 0:
        return 1 - student_t_tail(-t, degrees)
    if math.isinf(t):
        return 0.0
    square = t * t / degrees
    x, rest = 1 / (1 + square), square / (1 + square)
    return 0.5 * _incomplete_beta(degrees / 2, 0.5, x, rest, _log_beta_half(degrees / 2))


_NEWTON_STEPS = 20
_MANY_DEGREES = 10_000  # from here on the expansion is exact to the last digits
_TINY = 1e-300  # stands in for a denominator of 0


def _incomplete_beta(a: float, b: float, x: float, rest: float, log_beta: float) -> float:
    """I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8); `rest` is 1 - x, apart for its digits."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the near side only
        return 1 - _incomplete_beta(b, a, rest, x, log_beta)
    log_x = math.log(x) if x < 0.5 else math.log1p(-rest)
    log_rest = math.log(rest) if rest < 0.5 else math.log1p(-x)
    return math.exp(a * log_x + b * log_rest - log_beta) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ..)), by Lentz's method."""
    value, c, d, m = 1.0, 1.0, 0.0, 0
    while True:
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) if m else None
        before = value
        for term in (odd,) if even is None else (even, odd):
            c, d = 1 + term / c or _TINY, 1 / (1 + term * d or _TINY)
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            return value
        m += 1


def _log_beta_half(a: float) -> float:
    """log B(a, 1/2); for large a by a series, for the difference of two large logarithms would keep few digits."""
    if a < _MANY_DEGREES:
        return math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    return 0.5 * math.log(math.pi / a) - math.log1p(-1 / (8 * a) + 1 / (128 * a * a))


def _t_density(t: float, degrees: float) -> float:
    log_front = -_log_beta_half(degrees / 2) - 0.5 * math.log(degrees)
    return math.exp(log_front - (degrees + 1) / 2 * math.log1p(t * t / degrees))


def _cornish_fisher(z: float, n: float) -> float:
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
