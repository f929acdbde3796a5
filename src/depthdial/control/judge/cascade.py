"""A cascade: answer on a shallow route and, where that was unsure, answer again on a deep one; both runs are paid.

The rival of a controller that predicts (Chen, Zaharia and Zou, "FrugalGPT", arXiv 2305.05176, section 3, cascades): it need
predict nothing, but what it runs twice costs twice. Everything that it decides is decided on calibration rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from depthdial.errors import InputError
from depthdial.oracles.exact.knapsack import BUDGET_RTOL


@dataclass(frozen=True)
class Cascade:
    """Run route `shallow`; where its confidence is below `threshold`, run route `deep` too and take its answer.

    The threshold is minus infinity where the shallow route always stands, infinity where it never does.
    """

    shallow: int
    deep: int
    threshold: float


def cascade_outcomes(
    confidence: np.ndarray, values: np.ndarray, costs: np.ndarray, shallow: int, deep: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) quality and (n,) cost of a cascade on each sequence.

    Args:
        confidence: (n,) of the shallow route's own answer; more is surer.
        values: (n, n_routes); costs: (n, n_routes) or (n_routes,).
    """
    unsure = confidence < threshold
    costs = np.broadcast_to(costs, values.shape)
    paid = costs[:, shallow] + np.where(unsure, costs[:, deep], 0.0)
    return np.where(unsure, values[:, deep], values[:, shallow]), paid


def threshold_for_budget(confidence: np.ndarray, costs: np.ndarray, shallow: int, deep: int, budget: float) -> float:
    """The highest threshold at which a cascade's mean cost on calibration rows is within the budget.

    Args:
        confidence: (n,) of the shallow route's answers.
        costs: (n, n_routes) or (n_routes,).

    Raises:
        InputError: the budget is NaN or below the shallow route's own mean cost.
    """
    n = len(confidence)
    costs = np.broadcast_to(costs, (n, np.shape(costs)[-1]))
    alone = float(costs[:, shallow].mean())
    spare = budget - alone
    if not spare >= -BUDGET_RTOL * abs(budget):
        raise InputError(
            f"The budget {budget:g} is below the shallow route's own mean cost, {alone:.10g}; give at least that."
        )
    order = np.argsort(confidence, kind="stable")
    # Mean cost of the second runs if the k least sure run again. Equally sure ones do so together.
    second = np.concatenate(([0.0], costs[order, deep].cumsum() / n))
    surest = np.append(confidence[order], np.inf)
    possible = np.concatenate(([True], np.diff(surest) > 0))
    affordable = possible & (second <= spare + BUDGET_RTOL * abs(budget))
    at = int(np.flatnonzero(affordable)[-1])
    return -np.inf if at == 0 else float(surest[at])


def best_cascades(
    confidence: ArrayLike,
    values: ArrayLike,
    costs: ArrayLike,
    budgets: Sequence[float] | np.ndarray,
    *,
    shallow: Sequence[int] | None = None,
    deep: Sequence[int] | None = None,
) -> tuple[Cascade, ...]:
    """For each budget the pair of routes and the threshold with the best mean quality on calibration rows.

    Args:
        confidence: (n, n_routes) of each route's own answers; columns of routes that are not `shallow` are not read.
        values: (n, n_routes) quality on these rows; costs: (n, n_routes) or (n_routes,).
        shallow, deep: routes that may come first and second; all by default.

    Raises:
        InputError: a budget is below every shallow route's mean cost, or the shapes do not fit.
    """
    sure, worth = np.asarray(confidence, dtype=float), np.asarray(values, dtype=float)
    if worth.ndim != 2 or sure.shape != worth.shape or np.shape(costs)[-1:] != worth.shape[1:]:
        raise InputError(
            f"Confidence {sure.shape}, values {worth.shape} and costs {np.shape(costs)} do not fit: give (n, n_routes) each."
        )
    paid = np.broadcast_to(np.asarray(costs, dtype=float), worth.shape)
    every = range(worth.shape[1])
    pairs = [(a, b) for a in (every if shallow is None else shallow) for b in (every if deep is None else deep) if a != b]
    means, found = paid.mean(axis=0), []
    for budget in budgets:
        tried = []
        for first, second in pairs:
            if means[first] <= budget * (1 + BUDGET_RTOL):
                threshold = threshold_for_budget(sure[:, first], paid, first, second, budget)
                value = cascade_outcomes(sure[:, first], worth, paid, first, second, threshold)[0].mean()
                tried.append((float(value), Cascade(first, second, threshold)))
        if not tried:
            raise InputError(
                f"The budget {budget:g} is below the mean cost of every shallow route; give more or allow cheaper routes."
            )
        found.append(max(tried, key=lambda pair: pair[0])[1])
    return tuple(found)


def cascade_curve(
    cascades: Sequence[Cascade], confidence: np.ndarray, values: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n, len(cascades)) quality and cost of each cascade on each sequence; `confidence` is (n, n_routes)."""
    runs = [cascade_outcomes(confidence[:, c.shallow], values, costs, c.shallow, c.deep, c.threshold) for c in cascades]
    return np.stack([run[0] for run in runs], axis=1), np.stack([run[1] for run in runs], axis=1)
