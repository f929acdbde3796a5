"""What an oracle is held against: fixed routes, their mixtures, chance, and how far the sample itself may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthdial.oracles.exact.hull import merge_increments
from depthdial.oracles.exact.knapsack import prepare
from depthdial.stats.bootstrap import percentiles, ratios, resamples


@dataclass(frozen=True)
class FixedRoute:
    """One route for every sequence: its mean cost and mean value, with a bootstrap interval of the mean value."""

    route: str
    cost: float
    value: float
    low: float | None
    high: float | None


def fixed_routes(
    names: Sequence[str], costs: np.ndarray, values: np.ndarray, draws: np.ndarray, confidence: float
) -> tuple[FixedRoute, ...]:
    """Routes of (n_routes,) costs and values, with intervals of (n_draws, n_routes) resampled values; none without draws."""
    ends = percentiles(draws, confidence).tolist() if len(draws) else [(None, None)] * len(names)
    columns = zip(names, costs.tolist(), values.tolist(), ends, strict=True)
    return tuple(FixedRoute(name, cost, value, low, high) for name, cost, value, (low, high) in columns)


@dataclass(frozen=True)
class Bootstrap:
    """Statistics of resampled sets of sequences, one row per resample.

    `curve`: (n_bootstrap, n_budgets), `fixed`: (n_bootstrap, n_routes), `matches_full_at`: (n_bootstrap,), infinite where
    the curve never reaches the full route; None without one.
    """

    curve: np.ndarray
    fixed: np.ndarray
    matches_full_at: np.ndarray | None

    @classmethod
    def of(
        cls, curves: list[np.ndarray], fixed: list[np.ndarray], matches: list[float | None], n_budgets: int, n_routes: int
    ) -> Bootstrap:
        """`curves` and `fixed`: of chunks of the resamples; `matches`: of all of them, or none."""
        at = np.array([np.inf if match is None else match for match in matches]) if matches else None
        curve, routes = (np.concatenate([np.empty((0, n)), *p]) for n, p in ((n_budgets, curves), (n_routes, fixed)))
        return cls(curve, routes, at)


def mixture_curve(costs: np.ndarray, values: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Best value of drawing each sequence's route at random from one distribution, at each mean cost.

    Args:
        costs, values: (n_routes,), means of the fixed routes. Their upper concave hull is what mixing two can reach.
        budgets: (n_budgets,), ascending. NaN where a budget is below the cheapest fixed route.
    """
    hull = merge_increments(values[None, :], costs[None, :])
    mixed = np.interp(budgets, hull.total_costs, hull.total_values)
    # The same rounding as for a budget: a mean of costs may come out a hair below itself.
    return np.where(budgets >= costs.min() * (1 - 1e-12), mixed, np.nan)


def weighted(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(n_sequences, n_routes) values whose plain mean over sequences is the mean weighted by (n_sequences,) weights."""
    return values if weights is None else values * (weights / weights.mean())[:, None]


def crossing(costs: np.ndarray, values: np.ndarray, target: float) -> float | None:
    """The lowest cost at which a rising curve, straight between its points, reaches the target; None if it does not."""
    tolerance = 1e-12 * max(abs(target), abs(float(values[-1])))
    reached = values >= target - tolerance
    if not reached.any():
        return None
    first = int(reached.argmax())
    if first == 0 or values[first] <= target:
        return float(costs[first])
    share = (target - values[first - 1]) / (values[first] - values[first - 1])
    return float(costs[first - 1] + share * (costs[first] - costs[first - 1]))


def permuted_curves(
    values: np.ndarray,
    costs: np.ndarray,
    bases: np.ndarray,
    budgets: np.ndarray,
    target: float | None,
    *,
    n_permutations: int,
    seed: int,
    value_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, list[float]]:
    """The oracle on values shuffled over the sequences, independently within each route.

    Every route keeps its mean and spread, but a sequence's scores no longer belong together: what such an oracle gains
    over the mixture of fixed routes is the luck of taking the best of several independent draws.

    Returns:
        (n_permutations, n_budgets) best mean values, and the budget at which each shuffle reaches the target.
    """
    rng = np.random.default_rng([seed, 1])
    curves = np.empty((n_permutations, len(budgets)))
    crossings = []
    for number in range(n_permutations):
        problem = prepare(weighted(rng.permuted(values, axis=0), value_weights), costs, bases=bases)
        curves[number] = np.interp(budgets, problem.breakpoint_costs, problem.breakpoint_values)
        at = None if target is None else crossing(problem.breakpoint_costs, problem.breakpoint_values, target)
        if at is not None:
            crossings.append(at)
    return curves, crossings


def bootstrap_curves(
    values: np.ndarray,
    costs: np.ndarray,
    bases: np.ndarray,
    choices: np.ndarray,
    budgets: np.ndarray,
    full: int | None,
    *,
    n_bootstrap: int,
    seed: int,
    value_weights: np.ndarray | None = None,
) -> Bootstrap:
    """Resample the sequences with replacement and redo the curve, the fixed routes and the match with the full model.

    Args:
        costs, bases: (n_sequences, n_routes) and (n_sequences,): a cost is the sum of the chosen costs over the sum of the
            bases, both of the resample.
        value_weights: (n_sequences,) what values weigh in their mean; None for equal weights.
        choices: (n_sequences, n_budgets), the oracle's choice at breakpoints of its curve.
        budgets: (n_budgets,), where the resampled curves are read off.
        full: index of the full route, or None.

    A choice at a breakpoint maximises value - slope * cost for every sequence by itself, so it stays best for any
    resample, at that resample's own mean cost: a resampled curve is two matrix products. It is straight between those
    points, and a budget below a resample's cheapest assignment reads as that assignment.
    """
    n = len(values)
    rows = np.arange(n)[:, None]
    weight = np.ones(n) if value_weights is None else value_weights
    values = values * weight[:, None]
    curves, fixed, matches = [], [], []
    for counts in resamples(np.random.default_rng([seed, 0]), n_bootstrap, n, np.stack([bases, weight], axis=1)):
        spent = ratios(counts, costs[rows, choices], bases)
        paid = ratios(counts, values[rows, choices], weight)
        fixed.append(ratios(counts, values, weight))
        curves.append(np.stack([np.interp(budgets, *pair) for pair in zip(spent, paid, strict=True)]))
        if full is not None:
            for at, reached, target in zip(spent, paid, fixed[-1][:, full], strict=True):
                found = crossing(at, reached, target)
                # The last point takes the best route of every sequence, so only rounding can miss the full model.
                matches.append(float(at[-1]) if found is None else found)
    return Bootstrap.of(curves, fixed, matches, len(budgets), values.shape[1])
