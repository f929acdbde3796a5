"""How a controller chooses: the route whose predicted quality is worth its price, offline at a budget or online on a stream.

One price (quality per unit of cost) decides for all sequences: take the route with the greatest predicted - price * cost.
It is the multiplier of the budget in the multiple-choice knapsack (`hull`), so at the budgets that its steps spend no other
choice has a greater mean predicted quality. The online form moves the price after every sequence (dual descent; Balseiro,
Lu and Mirrokni, "The best of many worlds: dual mirror descent for online allocation problems", arXiv 2011.10124).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from depthdial.checks import number
from depthdial.errors import InputError
from depthdial.oracles.costs import budget_in_units
from depthdial.oracles.exact.hull import merge_increments
from depthdial.oracles.exact.knapsack import BUDGET_RTOL, prepare

# Scores closer than this share of their own terms are equal: at a price that is a slope, two routes tie but for rounding.
_TIE_RTOL = 1e-12

Budget = float | int | str


def choose_routes(predicted: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """(n,) the route with the greatest predicted - price * cost of each sequence; of equal ones the cheapest.

    Predicted qualities are (n, n_routes), costs too or (n_routes,); the price is quality per unit of cost, at least 0.
    """
    number("price", price, 0)
    costs = np.broadcast_to(costs, predicted.shape)
    scores = predicted - price * costs
    tolerance = _TIE_RTOL * (np.abs(predicted) + price * costs).max(axis=1, keepdims=True)
    tied = scores >= scores.max(axis=1, keepdims=True) - tolerance
    cheapest = np.where(tied, costs, np.inf)
    # Routes of one cost differ by their quality alone, however small that is beside a high price.
    equal = cheapest == cheapest.min(axis=1, keepdims=True)
    return np.where(equal, predicted, -np.inf).argmax(axis=1)


def price_for_budget(predicted: ArrayLike, costs: ArrayLike, budget: float) -> float:
    """The price of `prices_for_budgets` for one budget."""
    return float(prices_for_budgets(predicted, costs, [budget])[0])


def prices_for_budgets(predicted: ArrayLike, costs: ArrayLike, budgets: ArrayLike) -> np.ndarray:
    """For each budget the smallest price at which the choices on these rows cost no more than it on average.

    Args:
        predicted: (n, n_routes) on calibration rows, never on those that the policy is judged by.
        costs: (n, n_routes) or (n_routes,), at least 0.
        budgets: (n_budgets,) mean costs per sequence.

    Returns:
        0.0 where the best predicted routes fit; otherwise a slope of the rows' hulls, so the price is exact.

    Raises:
        InputError: numbers that are not finite, wrong shapes, or a budget that is NaN or below the cheapest routes.
    """
    problem = prepare(predicted, costs)
    steps = merge_increments(problem.values, problem.costs)
    n = len(problem.values)
    wanted = np.asarray(budgets, dtype=float)
    cheapest = problem.floor / n
    refused = wanted[~(wanted >= cheapest * (1 - BUDGET_RTOL))]
    if len(refused):
        raise InputError(
            f"The budget {refused[0]:g} is below the cheapest routes, whose mean cost is {cheapest:.10g}; "
            "give at least that."
        )
    # At a price all steps steeper than it are taken, and those of that very slope are not.
    taken = np.searchsorted(steps.total_costs, wanted * n * (1 + BUDGET_RTOL), side="right") - 1
    return np.append(steps.slope, 0.0)[np.maximum(taken, 0)]


@dataclass(frozen=True)
class OnlineBudget:
    """A running budget over a stream of unknown length, whatever arrives; every step returns the next state.

    After t sequences at most `budget * t + slack` is spent, so the mean cost is at most `budget + slack / t`: a route that
    would break this is not chosen, however good it looks. Costs that depend on an answer's length are expected ones until
    `settle` says what was really spent; what an answer takes beyond its expectation, later sequences pay for. That holds for
    every stream on which the cheapest route of each sequence costs no more than the budget; a dearer one is taken all the
    same, for something must run, and later sequences pay for it. Savings are kept by this guard, but the price forgets them
    once it is 0.

    Attributes:
        budget: mean cost per sequence.
        price: quality per unit of cost, for the next sequence.
        rate: by how much the price rises per unit of cost, above the budget, of the route that it wants.
        slack: cost that may be spent ahead of the budget.
        spent, n_done: total cost and number of the sequences so far.
    """

    budget: float
    price: float
    rate: float
    slack: float
    spent: float = 0.0
    n_done: int = 0

    def __post_init__(self) -> None:
        number("price", self.price, 0)
        for name in ("budget", "rate", "slack"):
            number(f"{name} of an online budget", getattr(self, name), 0)

    @classmethod
    def start(cls, predicted: ArrayLike, costs: ArrayLike, budget: float) -> OnlineBudget:
        """Begin at the price that keeps the budget on calibration rows; arguments and errors as in `prices_for_budgets`.

        The slack is the difference between the costliest and the cheapest route of these rows. The greatest step of the
        price is the median slope of the rows' hulls over the square root of their number: the theory's rate for a stream as
        long as the calibration.
        """
        problem = prepare(predicted, costs)
        spread = float(problem.costs.max() - problem.costs.min())
        slopes = merge_increments(problem.values, problem.costs).slope
        scale = float(np.median(slopes)) if len(slopes) else 1.0
        rate = scale / (spread * math.sqrt(len(problem.values))) if spread > 0 else 0.0
        return cls(float(budget), price_for_budget(predicted, costs, budget), rate, spread)

    @property
    def mean_cost(self) -> float:
        """Of the sequences so far; 0 before the first."""
        return self.spent / max(self.n_done, 1)

    def step(self, predicted: np.ndarray, costs: np.ndarray) -> tuple[int, OnlineBudget]:
        """The route of the next sequence, from its predicted qualities and costs (n_routes,), and the state after it."""
        wanted = route = int(choose_routes(predicted[None], costs, self.price)[0])
        allowed = self.budget * (self.n_done + 1) + self.slack
        fits = self.spent + costs <= allowed * (1 + BUDGET_RTOL)
        if not fits[route]:
            among = np.flatnonzero(fits) if fits.any() else np.array([costs.argmin()])
            route = int(among[choose_routes(predicted[None, among], costs[among], self.price)[0]])
        # What the guard refused counts too: a price that only saw what was spent would never rise to where it is needed.
        price = max(0.0, self.price + self.rate * (float(costs[wanted]) - self.budget))
        return route, replace(self, price=price, spent=self.spent + float(costs[route]), n_done=self.n_done + 1)

    def settle(self, expected: float, spent: float) -> OnlineBudget:
        """The state once it is known that what was expected to cost `expected` cost `spent`; the price follows too."""
        number("expected cost", expected, 0)
        number("cost", spent, 0)
        price = max(0.0, self.price + self.rate * (spent - expected))
        return replace(self, price=price, spent=max(0.0, self.spent - expected + spent))

    def run(self, predicted: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, OnlineBudget]:
        """`step` through a stream (n, n_routes) in order: the routes (n,), and the state after the last."""
        state, routes = self, np.empty(len(predicted), dtype=np.intp)
        for i, row in enumerate(np.broadcast_to(costs, predicted.shape)):
            routes[i], state = state.step(predicted[i], row)
        return routes, state


def budget_in(unit: str, budget: Budget, *, full_cost: float, n_layers: int) -> float:
    """A budget in a controller's unit, as `costs.budget_in_units` reads it; every number above 1 counts layers there.

    Raises:
        InputError: if it is neither a number above 0 nor a percentage.
    """
    cost = budget_in_units(budget, cost=unit, full_cost=full_cost, most=1.0, n_layers=n_layers)
    if not 0 < cost < math.inf:
        raise InputError(
            f"The budget {budget!r} is not above 0 and finite: give a mean cost such as 24, or a share ('80%')."
        )
    return cost
