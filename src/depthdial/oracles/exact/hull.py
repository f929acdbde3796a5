"""Upper concave hulls of (cost, value) points, and the one sort that turns them into the oracle's whole curve.

The linear relaxation of the multiple-choice knapsack is solved by taking, over all sequences together, the steps of
the hulls in order of falling value per cost (Sinha and Zoltners, "The multiple-choice knapsack problem", Operations
Research 27, 1979; Zemel 1980). Every prefix of that order is an integer solution, and the best one for its own cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Slopes closer than this are one slope: a point on the straight line between two others is kept as a step of its own.
_SLOPE_RTOL = 1e-12
# Costs that differ by next to nothing must not make a slope infinite.
_STEEPEST = 1e300


@dataclass(frozen=True)
class Increments:
    """The hulls of n sequences, cut into m steps and sorted by falling slope (`slope`, value per cost).

    `hull[i, k]` is the route of sequence i after k of its steps (padded with its last route); sequence i starts at
    `start_cost[i]`, `start_value[i]` on `hull[i, 0]`. Step t belongs to `sequence[t]`, is its `step[t]`-th (from 1)
    and adds `cost[t] > 0` and `value[t] > 0`. The steps of one sequence stand in their own order.
    """

    hull: np.ndarray
    start_cost: np.ndarray
    start_value: np.ndarray
    sequence: np.ndarray
    step: np.ndarray
    cost: np.ndarray
    value: np.ndarray
    slope: np.ndarray

    @property
    def total_costs(self) -> np.ndarray:
        """Total cost after 0, 1, .. m steps, shape (m + 1,); in the dtype of the costs, so integers stay exact."""
        return np.append(self.start_cost.sum(), self.cost).cumsum()

    @property
    def total_values(self) -> np.ndarray:
        """Total value after 0, 1, .. m steps, shape (m + 1,)."""
        return np.append(self.start_value.sum(), self.value).cumsum()

    def choice_after(self, n_steps: int) -> np.ndarray:
        """The route of each sequence after the first `n_steps` steps of the merged order, shape (n_sequences,)."""
        taken = np.bincount(self.sequence[:n_steps], minlength=len(self.hull))
        return self.hull[np.arange(len(self.hull)), taken]

    def choices_after(self, n_steps: np.ndarray) -> np.ndarray:
        """The same for an ascending array of counts, shape (n_sequences, len(n_steps))."""
        taken = np.zeros((len(self.hull), len(n_steps)), dtype=self.hull.dtype)
        # Step t (from 0) first counts at the first column whose count is above t.
        column = np.searchsorted(n_steps, np.arange(len(self.sequence)), side="right")
        seen = column < len(n_steps)
        np.maximum.at(taken, (self.sequence[seen], column[seen]), self.step[seen].astype(taken.dtype))
        np.maximum.accumulate(taken, axis=1, out=taken)
        return np.take_along_axis(self.hull, taken.astype(np.intp), axis=1)


def merge_increments(values: np.ndarray, costs: np.ndarray) -> Increments:
    """Walk every sequence's upper concave hull at once and merge the steps by falling slope.

    Values (more is better) and costs (at least 0) are (n_sequences, n_routes). A hull starts at the cheapest route (the best
    of the cheapest) and ends at the best route (the cheapest of the best). Runs in O(n_sequences * n_routes * steps of the
    longest hull) vectorised operations and one sort.
    """
    n, n_routes = values.shape
    rows = np.arange(n)
    current = np.where(costs == costs.min(axis=1, keepdims=True), values, -np.inf).argmax(axis=1)
    hull_dtype = np.int16 if n_routes < np.iinfo(np.int16).max else np.int32
    hull, slopes, counts = [current.astype(hull_dtype)], [], np.zeros(n, dtype=np.intp)
    active = rows
    while len(active):
        here = current[active]
        step_costs = costs[active] - costs[active, here][:, None]
        gains = values[active] - values[active, here][:, None]
        useful = (step_costs > 0) & (gains > 0)
        slope = np.full(gains.shape, -np.inf)
        with np.errstate(over="ignore"):
            np.divide(gains, step_costs, out=slope, where=useful)
        np.minimum(slope, _STEEPEST, out=slope)
        best = slope.max(axis=1)
        alive = best > 0
        active, slope, best, step_costs = active[alive], slope[alive], best[alive], step_costs[alive]
        # The nearest of the points on the steepest line: collinear points stay, so that the curve has every breakpoint.
        nearest = np.where(slope >= (best * (1 - _SLOPE_RTOL))[:, None], step_costs.astype(float), np.inf)
        current[active] = nearest.argmin(axis=1)
        counts[active] += 1
        hull.append(current.astype(hull_dtype))
        step_slope = np.full(n, -np.inf)
        step_slope[active] = best
        slopes.append(step_slope)
    return _sort_steps(values, costs, np.stack(hull, axis=1), np.stack(slopes, axis=1), counts)


def _sort_steps(
    values: np.ndarray, costs: np.ndarray, hull: np.ndarray, slopes: np.ndarray, counts: np.ndarray
) -> Increments:
    hull_costs = np.take_along_axis(costs, hull.astype(np.intp), axis=1)
    hull_values = np.take_along_axis(values, hull.astype(np.intp), axis=1)
    # Rounding may let a slope rise by a hair along a hull; the running minimum keeps a hull's steps in order.
    slopes = np.minimum.accumulate(slopes, axis=1)
    present = np.arange(slopes.shape[1]) < counts[:, None]
    sequence, column = np.nonzero(present)
    slope = slopes[sequence, column]
    order = np.argsort(-slope, kind="stable")
    sequence, column = sequence[order], column[order]
    return Increments(
        hull=hull,
        start_cost=hull_costs[:, 0],
        start_value=hull_values[:, 0],
        sequence=sequence,
        step=column + 1,
        cost=hull_costs[sequence, column + 1] - hull_costs[sequence, column],
        value=hull_values[sequence, column + 1] - hull_values[sequence, column],
        slope=slope[order],
    )
