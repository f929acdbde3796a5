"""One route per sequence, best mean value within a budget on the mean cost: the multiple-choice knapsack.

Concave hulls and one sort give the linear relaxation (`hull`); its bound closes almost every choice, and a dynamic
programme settles the rest (`core_search`). Costs on a common grid (layers, fractions of the layers, tokens) are solved
exactly, other costs to within a proven gap. This is the oracle controller of Glavas et al. (arXiv 2410.20022, the
section on sequence-level allocation, Figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from depthdial.errors import InputError
from depthdial.oracles.exact.core import Options, search
from depthdial.oracles.exact.hull import Increments, merge_increments

# A budget that a person computed as a mean of costs carries rounding; this much more than the budget is the budget.
BUDGET_RTOL = 1e-12
# Values whose totals differ by less are equal.
_VALUE_RTOL = 1e-12
# Real costs count as multiples of a unit if they are within this share of the largest cost from one.
_GRID_RTOL, _MAX_GRID = 1e-11, 10_000
_LARGEST_EXACT_INTEGER = 2.0**53


@dataclass(frozen=True)
class Allocation:
    """A route for each sequence, and how good that is.

    Attributes:
        choice: (n_sequences,) route indices.
        value: mean value over the sequences.
        cost: mean cost (weighted, if weights were given), at most the budget.
        bound: no choice within the budget has a greater mean value.
        gap: bound - value, at least 0; 0 where `exact`.
        exact: the choice is proven best (to within rounding).
    """

    choice: np.ndarray
    value: float
    cost: float
    bound: float
    gap: float
    exact: bool


@dataclass(frozen=True, eq=False)
class BudgetProblem:
    """A table of values and costs prepared once, to be solved at many budgets. Make one with `prepare`.

    Attributes:
        values: (n_sequences, n_routes), more is better.
        costs: (n_sequences, n_routes), each already times its sequence's weight.
        offsets: costs above the sequence's cheapest route, in `unit`s (integers) or as they are (`unit` is None).
        total_weight: what a total cost is divided by to give the mean cost (or its share of the full route's).
        floor: total of the cheapest costs.
    """

    values: np.ndarray
    costs: np.ndarray
    offsets: np.ndarray
    unit: float | None
    total_weight: float
    floor: float

    @cached_property
    def increments(self) -> Increments:
        """The merged hull steps in units of `offsets`."""
        return merge_increments(self.values, self.offsets)

    @cached_property
    def breakpoint_costs(self) -> np.ndarray:
        """Mean costs of the breakpoints of the whole curve, ascending."""
        return (self.floor + self.increments.total_costs * (self.unit or 1.0)) / self.total_weight

    @cached_property
    def breakpoint_values(self) -> np.ndarray:
        """The best mean value at each breakpoint; between two of them the straight line is an upper bound."""
        return self.increments.total_values / len(self.values)

    def spread_breakpoints(self, n_points: int) -> np.ndarray:
        """Ascending numbers of at most `n_points` breakpoints, evenly spread in cost, the first and last among them."""
        costs = self.breakpoint_costs
        evenly = np.linspace(costs[0], costs[-1], n_points)
        return np.unique(np.append(np.searchsorted(costs, evenly[:-1], side="right") - 1, len(costs) - 1))

    @cached_property
    def _value_tolerance(self) -> float:
        return _VALUE_RTOL * float(np.abs(self.values).max())

    def solve(self, budget: float) -> Allocation:
        """The best choice with mean cost <= budget; InputError for a budget that no choice meets."""
        if np.isnan(budget):
            raise InputError("The budget is NaN; give a number, the mean cost per sequence.")
        total = budget * self.total_weight
        spare = total - self.floor
        if not np.isinf(total):
            spare += BUDGET_RTOL * max(abs(total), abs(self.floor))
        if spare < 0:
            cheapest = self.floor / self.total_weight
            raise InputError(
                f"The budget {budget:g} is below the cheapest assignment, whose mean cost is {cheapest:.10g}; "
                "give at least that."
            )
        return self._solve_within(spare if self.unit is None else spare / self.unit)

    def cheapest_reaching(self, target: float) -> Allocation | None:
        """The cheapest allocation whose mean value is at least `target`; None if there is none.

        The first breakpoint of the hulls that reaches the target is an allocation, the one before it falls short.
        Between the two, the total cost is bisected with `solve` (the best value only rises with the budget): on a grid
        of costs down to one unit, which is exact; on real costs to a millionth of the budget.
        """
        wanted = (target - self._value_tolerance) * len(self.values)
        reached = np.flatnonzero(self.increments.total_values >= wanted)
        if not len(reached):
            return None
        costs = self.increments.total_costs
        best = self._solve_within(float(costs[reached[0]]))
        if reached[0] == 0:
            return best
        low, high = float(costs[reached[0] - 1]), float(costs[reached[0]])
        step = 1.0 if self.unit is not None else 1e-6 * (high + self.floor)
        while high - low > step:
            middle = (low + high) / 2 if self.unit is None else float((low + high) // 2)
            trial = self._solve_within(middle)
            if trial.value * len(self.values) >= wanted:
                best, high = trial, middle
            else:
                low = middle
        return best

    @cached_property
    def _value_unit(self) -> float:
        """What totals of values are multiples of (1 for right or wrong, 0.01 for rounded scores); 0 if of nothing.

        Tightens the bound where a whole unit is more than the linear relaxation still hopes for.
        """
        unit = _on_grid(self.values, self.values - self.values.min(axis=1, keepdims=True))[0]
        return 0.0 if unit is None else unit

    def _solve_within(self, spare: float) -> Allocation:
        """The best choice whose total cost is at most `floor` plus `spare` units."""
        costs = self.increments.total_costs
        if self.unit is not None:
            spare = np.floor(min(spare, float(costs[-1])))
        n_steps = int(np.searchsorted(costs, spare, side="right")) - 1
        choice = self.increments.choice_after(n_steps).astype(np.intp)
        residual = spare - costs[n_steps]
        if n_steps == len(costs) - 1 or residual == 0:
            return self._allocation(choice, gap=0.0)
        slope = float(self.increments.slope[n_steps])
        # Reduced-cost fixing leaves the moves that lose no more than the base falls short of the bound.
        rows, tolerance = np.arange(len(choice)), self._value_tolerance
        change = self.offsets - self.offsets[rows, choice][:, None]
        with np.errstate(over="ignore"):
            loss = np.maximum(self.values[rows, choice][:, None] - self.values + slope * change, 0.0)
        sequence, route = np.nonzero((loss <= slope * residual + tolerance) & (change != 0))
        moves = Options(sequence, route, change[sequence, route], loss[sequence, route])
        found = search(moves, residual, slope, tolerance, self._value_unit)
        choice[found.moves.sequence] = found.moves.route
        return self._allocation(choice, gap=(found.shortfall - found.proven) / len(self.values))

    def _allocation(self, choice: np.ndarray, gap: float) -> Allocation:
        rows = np.arange(len(choice))
        value = float(self.values[rows, choice].mean())
        cost = float(self.costs[rows, choice].sum() / self.total_weight)
        return Allocation(choice, value, cost, bound=value + gap, gap=gap, exact=gap == 0.0)


def prepare(
    values: ArrayLike, costs: ArrayLike, weights: ArrayLike | None = None, *, bases: ArrayLike | None = None
) -> BudgetProblem:
    """Check a table and make it ready for `BudgetProblem.solve`; arguments and errors as in `solve_budget`.

    Args:
        bases: (n_sequences,), such as the full route's costs: a total cost is then divided by sum(w * base), and budgets
            are shares of that. A sequence may have base 0 and routes that cost something.
    """
    value_table = real_array(values, "values")
    if value_table.ndim != 2:
        raise InputError(f"The values have shape {value_table.shape}; give an array (n_sequences, n_routes).")
    if 0 in value_table.shape:
        raise InputError(f"The table of values is empty (shape {value_table.shape}); give a sequence and a route.")
    cost_table = real_array(costs, "costs")
    if cost_table.shape not in (value_table.shape, value_table.shape[1:]):
        raise InputError(
            f"The costs have shape {cost_table.shape}; give {value_table.shape} like the values, "
            f"or ({value_table.shape[1]},), one per route."
        )
    cost_table = np.broadcast_to(cost_table, value_table.shape)
    if (cost_table < 0).any():
        raise InputError(f"The costs hold a negative number, {cost_table.min():g}; a cost is at least 0.")
    n = len(value_table)
    base = np.ones(n) if bases is None else checked_weights(bases, n, "bases", "give the full route's costs")
    if weights is not None:
        weight = checked_weights(weights, n)
        base = base * weight
        if not base.sum() > 0:
            raise InputError("The sequences with a weight have no bases above 0; give the full route's costs of them.")
        cost_table = cost_table * weight[:, None]
    cheapest = cost_table.min(axis=1)
    unit, offsets = _on_grid(cost_table, cost_table - cheapest[:, None])
    return BudgetProblem(value_table, cost_table, offsets, unit, float(base.sum()), float(cheapest.sum()))


def solve_budget_bounded(
    values: ArrayLike, costs: ArrayLike, budget: float, *, weights: ArrayLike | None = None
) -> Allocation:
    """`solve_budget` with the value reached, a proven upper bound, and whether the choice is proven best."""
    problem = prepare(values, costs, weights)
    try:
        mean_cost = float(budget)
    except (TypeError, ValueError):
        raise InputError(f"The budget {budget!r} is not a number; give the mean cost per sequence.") from None
    return problem.solve(mean_cost)


def solve_budget(values: ArrayLike, costs: ArrayLike, budget: float, *, weights: ArrayLike | None = None) -> np.ndarray:
    """Choose a route per sequence: the highest mean value whose mean cost stays within the budget.

    Args:
        values: (n_sequences, n_routes), more is better.
        costs: (n_sequences, n_routes) or (n_routes,), at least 0.
        budget: mean cost per sequence, in the units of `costs`.
        weights: (n_sequences,), for instance generated tokens: the mean cost is then sum(w * c) / sum(w).

    Returns:
        (n_sequences,) route indices; of equally good choices a cheaper one. Integer costs, and real ones that are
        multiples of a common unit such as 1/30, are solved exactly (proven while a sequence's costs span up to about
        50 units, and in practice far beyond); `solve_budget_bounded` tells, and gives the gap for other costs.

    Raises:
        InputError: NaN or infinite numbers, wrong shapes, an empty table, negative costs or weights, a budget that is
            NaN or below the cheapest assignment.

    Example:
        >>> dd.solve_budget([[0.1, 0.9], [0.8, 0.9]], [[1, 2], [1, 2]], budget=1.5)
        array([1, 0])
    """
    return solve_budget_bounded(values, costs, budget, weights=weights).choice


def real_array(given: ArrayLike, name: str) -> np.ndarray:
    """An array of finite floats; InputError otherwise."""
    try:
        array = np.asarray(given)
        array = array.astype(float) if array.dtype.kind in "biufO" else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise InputError(f"The {name} are not an array of real numbers; give numbers in rows of equal length.")
    if not np.isfinite(array).all():
        raise InputError(f"The {name} hold NaN or infinite numbers; leave those sequences out or repair them.")
    return array


def checked_weights(
    weights: ArrayLike, n: int, name: str = "weights", remedy: str = "give the generated tokens"
) -> np.ndarray:
    """(n,) finite numbers of at least 0 that are not all 0; InputError otherwise."""
    weight = real_array(weights, name)
    if weight.shape != (n,):
        raise InputError(f"The {name} have shape {weight.shape}; give ({n},), one per sequence.")
    if (weight < 0).any() or not weight.sum() > 0:
        raise InputError(f"The {name} must be at least 0 and not all 0; {remedy}.")
    return weight


def _on_grid(costs: np.ndarray, offsets: np.ndarray) -> tuple[float | None, np.ndarray]:
    """(unit, offsets in whole units) if the offsets are multiples of a common unit, else (None, offsets)."""
    largest = float(offsets.max())
    if largest == 0:
        return 1.0, offsets.astype(np.int64)
    if costs.sum() < _LARGEST_EXACT_INTEGER and (costs == np.rint(costs)).all():
        whole = offsets.astype(np.int64)
        unit = int(np.gcd.reduce(whole, axis=None))
        return float(unit), whole // unit
    distinct = np.unique(offsets)
    unit = _common_unit(distinct[distinct > _GRID_RTOL * largest], largest)
    return (None, offsets) if unit is None else (unit, np.rint(offsets / unit).astype(np.int64))


def _common_unit(distinct: np.ndarray, largest: float) -> float | None:
    """Euclid's algorithm on real numbers, given up where the unit would be too fine to tell from rounding."""
    unit = float(distinct.min())
    while unit * _MAX_GRID >= largest:
        multiples = np.rint(distinct / unit)
        remainders = np.abs(distinct - multiples * unit)
        if remainders.max() <= _GRID_RTOL * largest:
            return float((distinct * multiples).sum() / (multiples**2).sum())
        unit = float(remainders[remainders > _GRID_RTOL * largest].min())
    return None
