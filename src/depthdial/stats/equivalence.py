"""Is one thing better than another, worse, or as good? Paired differences over seeds and over sequences.

An interval that holds 0 does not show that two things are equal: it may as well be wide for want of data. Equality is shown
by two one-sided tests (TOST: Schuirmann 1987, Lakens 2017): the difference is proved to lie above minus a margin and below
plus it, which at 5% is the 90% interval lying inside the margin. Otherwise the result is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.stats.bootstrap import percentiles
from depthdial.stats.intervals import Interval, mean_interval

Verdict = Literal["helps", "hurts", "equivalent within the margin", "not decided by these data"]
Curve = Sequence[tuple[float, float]]

N_DRAWS = 10_000
_DRAWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Difference:
    """A mean paired difference `a - b`, in the unit of the scores.

    Attributes:
        interval_95: for whether there is a difference; `interval_90`: for whether it is inside the margin.
        margin: the largest difference that does not matter, stated before the data were seen; None for no such claim.
        higher_is_better: False for losses, of which a negative difference helps.
        effect_size: Cohen's d_z, the mean over the standard deviation of the differences; NaN for one of them.
        p_above: over seeds, of the one-sided test that the difference lies above -margin; `p_below`: below +margin. NaN
            without margin or for one seed.
        two_way: over sequences, the same mean with intervals that resample seeds and sequences together: for other seeds
            too; None for one seed, which says nothing about others. Of few seeds a bootstrap makes too little: of 5 their
            part of the variance is 4/5 of what it should be, with normal tails.
    """

    interval_95: Interval
    interval_90: Interval
    margin: float | None
    higher_is_better: bool
    effect_size: float = math.nan
    p_above: float = math.nan
    p_below: float = math.nan
    two_way: Difference | None = None

    @property
    def mean(self) -> float:
        return self.interval_95.mean

    @property
    def is_equivalent(self) -> bool:
        """At 5%: the 90% interval lies inside the margin. Never so without an interval or a margin."""
        if self.margin is None:
            return False
        return -self.margin < self.interval_90.low and self.interval_90.high < self.margin

    @property
    def direction(self) -> int:
        """1 where the 95% interval shows that `a` is better, -1 where it is worse, 0 where it holds no difference too."""
        sign = 1 if self.interval_95.low > 0 else -1 if self.interval_95.high < 0 else 0
        return sign if self.higher_is_better else -sign

    @property
    def verdict(self) -> Verdict:
        """A difference that is shown and shown to be smaller than the margin counts as equivalent."""
        if self.is_equivalent:
            return "equivalent within the margin"
        if self.direction == 0:
            return "not decided by these data"
        return "helps" if self.direction > 0 else "hurts"


def paired_over_seeds(
    a: ArrayLike, b: ArrayLike, *, margin: float | None = None, higher_is_better: bool = True
) -> Difference:
    """The mean of `a - b` over seeds (runs of a training), its t intervals, effect size and equivalence test.

    Args:
        a, b: (n_seeds,) scores; entry i of both is of the same seed.
        margin: in the unit of the scores, above 0.

    Raises:
        InputError: if shapes differ, a score is not finite, there is none, or the margin is not above 0.
    """
    differences = _differences(a, b, 1, margin)
    mean, n, p_above, p_below = float(differences.mean()), len(differences), math.nan, math.nan
    if margin is not None and n > 1:
        error = float(differences.std(ddof=1)) / math.sqrt(n)
        # P(T > t) is P(T < -t), which keeps the digits of a small tail.
        p_above, p_below = (float(stdtr(n - 1, -_ratio(margin + by, error))) for by in (mean, -mean))
    at_95, at_90 = (mean_interval(differences, level) for level in (0.95, 0.90))
    return Difference(at_95, at_90, margin, higher_is_better, _effect_size(differences), p_above, p_below)


def paired_over_sequences(
    a: ArrayLike,
    b: ArrayLike,
    *,
    margin: float | None = None,
    higher_is_better: bool = True,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Difference:
    """The mean of `a - b`, with percentile bootstrap intervals over sequences for these very seeds, and `two_way`.

    Args:
        a, b: (n_seeds, n_sequences) scores; a cell of both is of the same seed and sequence.
        margin: in the unit of the scores, above 0.
        n_draws: resamples of each bootstrap; `seed`: of their chance.

    Raises:
        InputError: if shapes differ, a score is not finite, there is none, or the margin or n_draws is not above 0.
    """
    differences = _differences(a, b, 2, margin)
    whole("n_draws", n_draws, 1)
    by_sequence = differences.mean(axis=0)

    def paired(n: int, table: np.ndarray, effect_size: float = math.nan, two_way: Difference | None = None) -> Difference:
        draws = _bootstrap(table, n_draws, seed) if n > 1 else np.array([math.nan])
        ends = [percentiles(draws, level).tolist() for level in (0.95, 0.90)]
        at_95, at_90 = (Interval(float(differences.mean()), low, high, n) for low, high in ends)
        return Difference(at_95, at_90, margin, higher_is_better, effect_size, two_way=two_way)

    n_seeds, n_sequences = differences.shape
    two_way = paired(n_seeds, differences) if n_seeds > 1 else None
    return paired(n_sequences, by_sequence[None], _effect_size(by_sequence), two_way)


def difference_at_equal_cost(points_a: Sequence[Curve], points_b: Sequence[Curve], costs: ArrayLike) -> np.ndarray:
    """`a - b` of every seed at the same costs: two controllers trained to one target land on slightly different ones.

    A seed's curve is drawn through its (cost, score) points by straight lines, and read at `costs`. Nothing is extrapolated:
    where a curve of either does not reach there is NaN. Points of one cost count by their mean.

    Args:
        points_a, points_b: one curve for each seed, in the same order.

    Returns:
        (n_seeds, n_costs) differences.

    Raises:
        InputError: if the seeds are not as many, or a point is not finite.
    """
    if len(points_a) != len(points_b) or not points_a:
        raise InputError(f"There are curves of {len(points_a)} and {len(points_b)} seeds: give one of each for every seed.")
    return np.array([_read_at(a, costs) - _read_at(b, costs) for a, b in zip(points_a, points_b, strict=True)])


def common_costs(curves: Sequence[Curve], wanted: Sequence[float]) -> list[float | None]:
    """For each wanted cost the nearest one that all curves reach; None where that is over half a step of `wanted` away.

    At the ends of a range of targets the measured costs lie on both sides of the wanted one, so that some curves stop short.
    """
    low, high = max(min(c for c, _ in curve) for curve in curves), min(max(c for c, _ in curve) for curve in curves)
    if low > high:
        return [None] * len(wanted)
    ordered = sorted(set(wanted))
    step = min((more - less for less, more in pairwise(ordered)), default=0.0)
    nearest = [min(max(cost, low), high) for cost in wanted]
    return [found if abs(found - cost) <= step / 2 else None for found, cost in zip(nearest, wanted, strict=True)]


def _differences(a: ArrayLike, b: ArrayLike, n_axes: int, margin: float | None) -> np.ndarray:
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != n_axes or first.size == 0:
        axes = "(seeds,)" if n_axes == 1 else "(seeds, sequences)"
        raise InputError(f"Scores of shapes {first.shape} and {second.shape} cannot be paired: give two of {axes}.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("A score that is to be paired is missing or not finite: leave its pair out.")
    if margin is not None:
        number("margin of equivalence", margin, above=0)
    return first - second


def _ratio(distance: float, error: float) -> float:
    """A t statistic; without any spread the sign decides, and nothing does at the margin itself."""
    if error > 0:
        return distance / error
    return math.copysign(math.inf, distance) if distance else 0.0


def _effect_size(differences: np.ndarray) -> float:
    return math.nan if len(differences) < 2 else _ratio(float(differences.mean()), float(differences.std(ddof=1)))


def _bootstrap(differences: np.ndarray, n_draws: int, seed: int) -> np.ndarray:
    """(n_draws,) means of (n_seeds, n_sequences) differences with rows and columns drawn with replacement; one row stays.

    Counts come from `multinomial`, unlike those of `bootstrap.resamples`, so that verdicts of rows from before stay theirs.
    """
    rng, found = np.random.default_rng(seed), []
    for start in range(0, n_draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, n_draws - start)
        columns, rows = (rng.multinomial(n, np.full(n, 1 / n), size=size) / n for n in differences.shape[::-1])
        found.append(((rows @ differences) * columns).sum(axis=1))
    return np.concatenate(found)


def _read_at(curve: Curve, costs: ArrayLike) -> np.ndarray:
    points = np.reshape(np.asarray(curve, dtype=float), (-1, 2))
    if not len(points) or not np.isfinite(points).all():
        raise InputError("A curve has no point, or one that is missing or not finite: leave its seed out.")
    places, which = np.unique(points[:, 0], return_inverse=True)
    heights = np.bincount(which, weights=points[:, 1]) / np.bincount(which)
    return np.interp(np.asarray(costs, dtype=float), places, heights, left=np.nan, right=np.nan)
