"""The oracle's whole curve, read off at some of its breakpoints."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdial.oracles.exact.knapsack import BudgetProblem


class WholeCurve(NamedTuple):
    """The oracle at breakpoints of its curve, and where the costliest fixed route lies beyond the last one, there.

    `budgets` and `values` are (n_budgets,), `shares` (n_budgets, n_routes), `choices` (n_sequences, n_budgets).
    """

    budgets: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    choices: np.ndarray


def read_off(problem: BudgetProblem, n_points: int = 200) -> WholeCurve:
    """The curve at no more than `n_points` of its breakpoints, evenly spread in cost.

    If the costliest fixed route costs more than the last breakpoint, its cost is added with the same choices.
    """
    costs = problem.breakpoint_costs
    at = problem.spread_breakpoints(n_points) if len(costs) > n_points else np.arange(len(costs))
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
