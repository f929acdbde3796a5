"""What an oracle is held against: fixed routes, their mixtures, chance, and how far the sample itself may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Bootstrap(NamedTuple):
    """Statistics of resampled sets of sequences, one row per resample; a match that is never reached is infinite."""

    curve: np.ndarray  # (n_bootstrap, n_budgets)
    fixed: np.ndarray  # (n_bootstrap, n_routes)
    matches_full_at: np.ndarray | None  # (n_bootstrap,); None without full route


def mixture_curve(costs: np.ndarray, values: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Best value of drawing each sequence's route at random from one distribution, at each of the ascending budgets.

    It is the upper concave hull of the fixed routes' mean costs and values (n_routes,), NaN below the cheapest route.
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
    rng: np.random.Generator,
    *,
    n_permutations: int,
    value_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, list[float]]:
    """The oracle on values shuffled over the sequences, independently within each route.

    Every route keeps its mean and spread, but a sequence's scores no longer belong together: what such an oracle gains
    over the mixture of fixed routes is the luck of taking the best of several independent draws. Returns (n_permutations,
    n_budgets) best mean values, and the budget at which each shuffle reaches the target.
    """
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
    chosen: Sequence[tuple[np.ndarray, np.ndarray]],
    values: np.ndarray,
    bases: np.ndarray,
    budgets: np.ndarray,
    full: int | None,
    rng: np.random.Generator,
    *,
    n_bootstrap: int,
    value_weights: np.ndarray | None = None,
    at_own_points: bool = False,
) -> Bootstrap:
    """Resample the sequences with replacement and redo the curve, the fixed routes and the match with the full model.

    Args:
        chosen: costs and values, (n_sequences, n_points) each, at breakpoints of curves, of which the mean is redone.
        bases: (n_sequences,): a cost is the sum of the chosen costs over the sum of the bases, both of the resample.
        value_weights: (n_sequences,) what values weigh in their mean; None for equal weights.
        budgets: (n_budgets,), where the resampled curves are read off.
        full: index of the full route, or None.
        at_own_points: find the match between the points of one curve whose last point takes the best route of every
            sequence, not between budgets.

    A choice at a breakpoint maximises value - slope * cost for every sequence by itself, so it stays best for any
    resample, at that resample's own mean cost: a resampled curve is two matrix products. It is straight between those
    points, and a budget below a resample's cheapest assignment reads as that assignment.
    """
    n, n_routes = values.shape
    weight = np.ones(n) if value_weights is None else value_weights
    values, chosen = values * weight[:, None], [(cost, value * weight[:, None]) for cost, value in chosen]
    curves, fixed, matches = [np.empty((0, len(budgets)))], [np.empty((0, n_routes))], []
    for counts in resamples(rng, n_bootstrap, n, np.stack([bases, weight], axis=1)):
        fixed.append(ratios(counts, values, weight))
        points = [(ratios(counts, cost, bases), ratios(counts, value, weight)) for cost, value in chosen]
        read = [[np.interp(budgets, *pair) for pair in zip(*each, strict=True)] for each in points]
        curves.append(np.mean(read, axis=0))
        if full is not None:
            pairs = zip(*points[0], strict=True) if at_own_points else ((budgets, curve) for curve in curves[-1])
            for (at, reached), target in zip(pairs, fixed[-1][:, full], strict=True):
                found = crossing(at, reached, target)
                # Only rounding can miss the full model at the last point of all.
                matches.append((at[-1] if at_own_points else np.inf) if found is None else found)
    return Bootstrap(np.concatenate(curves), np.concatenate(fixed), np.array(matches) if matches else None)
