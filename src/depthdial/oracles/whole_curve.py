"""The oracle's whole curve from arrays, read off at some of its breakpoints."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from depthdial.oracles.exact.knapsack import BudgetProblem, prepare


class WholeCurve(NamedTuple):
    """The oracle at breakpoints of its curve, and where the costliest fixed route lies beyond the last one, there.

    `budgets` and `values` are (n_budgets,), `shares` (n_budgets, n_routes), `choices` (n_sequences, n_budgets).
    """

    budgets: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    choices: np.ndarray


def oracle_curve(
    values: ArrayLike, costs: ArrayLike, weights: ArrayLike | None = None, *, n_points: int = 200
) -> WholeCurve:
    """The whole curve from arrays, read off at no more than `n_points` of its breakpoints, evenly spread in cost.

    If the costliest fixed route costs more than the last breakpoint, its cost is added with the same choices.

    Args:
        values, costs, weights: as in `depthdial.solve_budget`, more is better.

    One merge of all hull steps gives every breakpoint at once: O(n log n) in the number of steps.
    """
    return read_off(prepare(values, costs, weights), n_points)


def read_off(problem: BudgetProblem, n_points: int) -> WholeCurve:
    """The same of a prepared problem."""
    costs = problem.breakpoint_costs
    at = np.arange(len(costs))
    if len(costs) > n_points:
        evenly = np.linspace(costs[0], costs[-1], n_points)
        at = np.unique(np.append(np.searchsorted(costs, evenly[:-1], side="right") - 1, len(costs) - 1))
    choices = problem.increments.choices_after(at)
    n_routes = problem.values.shape[1]
    cells = choices + n_routes * np.arange(len(at))
    shares = np.bincount(cells.ravel(), minlength=len(at) * n_routes).reshape(len(at), n_routes) / len(choices)
    budgets, values = costs[at], problem.breakpoint_values[at]
    costliest = float(problem.costs.sum(axis=0).max() / problem.total_weight)
    if costliest > budgets[-1] * (1 + 1e-12):
        budgets, values = np.append(budgets, costliest), np.append(values, values[-1])
        shares, choices = np.vstack([shares, shares[-1:]]), np.hstack([choices, choices[:, -1:]])
    return WholeCurve(budgets, values, shares, choices)
