"""p-values and upper confidence bounds for the mean of bounded losses, from n independent rows and nothing else.

The hypothesis that a p-value speaks against is "the expected loss is above epsilon"; small means that it is ruled out.
Every method holds for any distribution within the bounds and any n, and says so by other means:

| method | source |
| --- | --- |
| `betting` | one side of the hedged capital with predictable plug-in bets, Waudby-Smith and Ramdas (arXiv 2010.09686) |
| `star_betting` | the same with bets that are sized anew for what is left to win, Voráček and Orabona (arXiv 2505.22422) |
| `empirical_bernstein` | Maurer and Pontil (arXiv 0907.3740), theorem 4 |
| `hoeffding_bentkus` | as in Learn-then-Test (arXiv 2110.01052), after Bentkus (2004) and Bates et al. (arXiv 2101.02703) |
| `hoeffding` | Hoeffding (1963), for reference |

All p-values fall as epsilon grows, so that a bound is found by bisection; those of `star_betting` all but always do.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, rel_entr

from depthdial.checks import choice

# The largest stake of a bet, as a share of the capital: one lost bet must not end the game. The paper takes 1/2 or 3/4;
# where most losses are 0 a higher one needs fewer rows, and where large losses are rare it costs next to nothing.
_LARGEST_STAKE = 0.9
_MOST_ROWS = 1_000_000
_EDGE = 1e-12
_BISECTIONS = 45


def p_values(
    losses: ArrayLike,
    epsilon: ArrayLike,
    *,
    method: str = "betting",
    delta: float = 0.05,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> np.ndarray:
    """p-values of "the expected loss is above epsilon", one for each sample.

    Args:
        losses: (..., n), rows along the last axis. For both kinds of betting their order must not depend on what they hold.
        epsilon: a number or an array (...); at the upper bound or beyond, no loss can be above it and the p-value is 0.
        delta: the level that bets are sized for; the p-values are valid whatever it is.
        bounds: the least and the greatest loss that there can be.

    Returns:
        (...) numbers in [0, 1].
    """
    choice("method", method, tuple(METHODS))
    low, high = bounds
    scaled = np.clip((np.asarray(losses, dtype=float) - low) / (high - low), 0.0, 1.0)
    mean = (np.broadcast_to(np.asarray(epsilon, dtype=float), scaled.shape[:-1]) - low) / (high - low)
    inside = np.clip(mean, _EDGE, 1 - _EDGE)
    return np.where(mean >= 1, 0.0, METHODS[method](scaled, inside, delta))


def upper_bounds(
    losses: ArrayLike,
    delta: float,
    *,
    method: str = "betting",
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> np.ndarray:
    """Upper confidence bounds of the expected loss at level 1 - delta: the smallest epsilon whose p-value is at most delta.

    Args:
        losses: (..., n).

    Returns:
        (...) numbers in [bounds[0], bounds[1]], each right to within 1e-12 of the range, and never too low.
    """
    rows = np.asarray(losses, dtype=float)
    refused, certified = (np.full(rows.shape[:-1], float(bound)) for bound in bounds)
    for _ in range(_BISECTIONS):
        middle = (refused + certified) / 2
        rejected = p_values(rows, middle, method=method, delta=delta, bounds=bounds) <= delta
        certified = np.where(rejected, middle, certified)
        refused = np.where(rejected, refused, middle)
    return certified


@functools.lru_cache
def rows_needed(
    epsilon: float, delta: float, *, method: str = "betting", bounds: tuple[float, float] = (-1.0, 1.0)
) -> int | None:
    """The fewest rows that can certify epsilon at all: where not one of them loses anything. None: more than a million."""

    def enough(n: int) -> bool:
        p = p_values(np.zeros(n), epsilon, method=method, delta=delta, bounds=bounds)
        return float(p) <= delta

    most = 2
    while not enough(most):
        if most >= _MOST_ROWS:
            return None
        most = min(2 * most, _MOST_ROWS)
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


# The methods, on losses and means scaled to [0, 1]. ------------------------------------------------------------------


def _betting(x: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    """min over t of 1 / K_t, K_t being what betting against "at least `mean`" made of 1: a supermartingale if that is true.

    Every bet follows from the rows before it. By Ville's inequality K ever reaches 1 / alpha with probability at most alpha.
    """
    level = mean[..., None]
    bets = np.minimum(np.sqrt(2 * np.log(1 / delta) / (x.shape[-1] * _variance_before(x))), _LARGEST_STAKE / (1 - level))
    capital = np.cumsum(np.log1p(bets * (level - x)), axis=-1)
    return np.exp(-np.maximum(capital.max(axis=-1), 0.0))


def _star_betting(x: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    """The same, where each bet is the best for what is left to win, log(1 / delta) - log K, in the rows that are left.

    Once 1 / delta is reached, bets are those of `_betting`. How far below delta a p-value lies then says little: it may be
    above that of a smaller epsilon.
    """
    n, target = x.shape[-1], np.log(1 / delta)
    before, largest = _variance_before(x), _LARGEST_STAKE / (1 - mean)
    capital, most = np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1])
    for t in range(n):
        each = np.where(most >= target, target / n, np.maximum(target - capital, 0.0) / (n - t))
        bets = np.minimum(np.sqrt(2 * each / before[..., t]), largest)
        capital = capital + np.log1p(bets * (mean - x[..., t]))
        most = np.maximum(most, capital)
    return np.exp(-most)


def _variance_before(x: np.ndarray) -> np.ndarray:
    """(..., n) the variance that the rows before each one suggest, with one row's worth of 1/4, the most there can be."""
    seen = np.arange(1, x.shape[-1] + 1)
    running_mean = (0.5 + np.cumsum(x, axis=-1)) / (seen + 1)
    variance = (0.25 + np.cumsum((x - running_mean) ** 2, axis=-1)) / (seen + 1)
    return np.concatenate([np.full((*x.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)


def _empirical_bernstein(x: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    """The level at which mean(x) + sqrt(2 V t / n) + 7 t / (3 (n - 1)), t = ln(2 / level), comes down to `mean`."""
    n = x.shape[-1]
    gap = mean - x.mean(axis=-1)
    spread = np.sqrt(2 * x.var(axis=-1, ddof=1) / n)
    slope = 7 / (3 * (n - 1))
    root = (np.sqrt(spread**2 + 4 * slope * np.maximum(gap, 0.0)) - spread) / (2 * slope)
    return np.minimum(1.0, 2 * np.exp(-(root**2)))


def _hoeffding_bentkus(x: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    n = x.shape[-1]
    observed = x.mean(axis=-1)
    below = np.minimum(observed, mean)
    chernoff = np.exp(-n * (rel_entr(below, mean) + rel_entr(1 - below, 1 - mean)))
    bentkus = np.e * bdtr(np.ceil(n * observed), n, mean)
    return np.minimum(1.0, np.minimum(chernoff, bentkus))


def _hoeffding(x: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    return np.exp(-2 * x.shape[-1] * np.maximum(mean - x.mean(axis=-1), 0.0) ** 2)


METHODS = {
    "betting": _betting,
    "star_betting": _star_betting,
    "empirical_bernstein": _empirical_bernstein,
    "hoeffding_bentkus": _hoeffding_bentkus,
    "hoeffding": _hoeffding,
}
