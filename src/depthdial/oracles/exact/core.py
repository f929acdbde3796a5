"""The dynamic programmes over what the bounds of the multiple-choice knapsack leave open.

Start from the best hull solution that fits, the *base*, with `residual` cost to spare, and let `slope` be the value
per cost of the first hull step that does not fit. Moving a sequence from its base route to another changes the cost by
`change` and loses `loss = slope * change - gain in value >= 0` (the base maximises value - slope * cost). A solution
whose changes add up to f <= residual is worth

    value(base) + slope * residual - [slope * (residual - f) + sum of losses],

where the first two terms are the bound of the linear relaxation and the bracket, the *shortfall*, is at least 0. Both
searches find the changes with the smallest shortfall; the base itself falls short by `slope * residual`. Whoever looks
for a shortfall of at most `ceiling` may forget every option that loses more: that is reduced-cost fixing.
(Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_FIRST_OPTIONS, _GROWTH = 32, 4
# The two limits keep one search under about 100 MB and a second or two.
_MAX_DENSE_CELLS, _MAX_DENSE_WORK = 100_000_000, 500_000_000
_MIN_STATES, _MAX_STATES, _MAX_SPARSE_WORK = 256, 40_000, 4_000_000


@dataclass(frozen=True)
class Options:
    """The m open moves away from the base: of `sequence` to `route`, at `change` != 0 of cost and `loss` >= 0."""

    sequence: np.ndarray
    route: np.ndarray
    change: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.sequence)

    def take(self, index: np.ndarray) -> Options:
        """The options at `index` (a mask or positions)."""
        return Options(self.sequence[index], self.route[index], self.change[index], self.loss[index])

    def by_sequence(self) -> list[np.ndarray]:
        """Positions of the options of each open sequence; those that can change the cost most come first."""
        order = np.argsort(self.sequence, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.sequence[order])) + 1)
        return sorted(filter(len, groups), key=lambda group: -float(np.abs(self.change[group]).max()))


class Found(NamedTuple):
    """The best moves and their shortfall; no solution falls short by less than `proven`."""

    moves: Options
    shortfall: float
    proven: float


def search(options: Options, residual: float, slope: float, tolerance: float, granularity: float = 0.0) -> Found:
    """The smallest shortfall, by raising the ceiling until the answer lies under it.

    Args:
        options: every move whose loss is at most `slope * residual`; integer changes (an integer dtype) are solved
            exactly while the window that they need is moderate (a spread of costs up to about 50 units always is).
        residual: cost to spare, at least 0, in the units and dtype kind of the changes.
        slope: value per cost at the break, above 0.
        tolerance: shortfalls this close are equal.
        granularity: all shortfalls are whole multiples of this apart (0 if nothing is known).
    """
    moves, best, proven = options.take(np.empty(0, dtype=np.intp)), slope * residual, 0.0

    def is_proven() -> bool:
        return best <= proven + tolerance or best - granularity < proven - tolerance

    integral = np.issubdtype(options.change.dtype, np.integer)
    for ceiling in _ceilings(np.sort(options.loss), best):
        if is_proven():
            break
        opened = options.take(options.loss <= ceiling + tolerance)
        narrow = _needed_options(opened, int(residual)) if integral else opened
        exact = _search_dense(narrow, int(residual), slope, tolerance) if integral else None
        positions, shortfall, complete = exact or _search_sparse(narrow, residual, slope, ceiling, tolerance)
        if shortfall < best - tolerance:
            moves, best = narrow.take(np.array(positions, dtype=np.intp)), shortfall
        if complete:
            # Every solution within the ceiling was looked at: the best is either found or worse than the ceiling.
            proven = min(ceiling, best)
        elif best <= ceiling:  # a higher ceiling could only be searched more coarsely
            break
    return Found(moves, best, best if is_proven() else proven)


def _ceilings(sorted_losses: np.ndarray, last: float) -> Iterator[float]:
    """Ceilings that open about 32, 128, 512, .. options, then the last one, under which everything lies."""
    count = _FIRST_OPTIONS
    while count < len(sorted_losses) and sorted_losses[count] < last:
        yield float(sorted_losses[count])
        count *= _GROWTH
    yield last


# Integer changes: how far from the base an optimum need be. ---------------------------------------------------------
#
# Take an optimum with the fewest moves. No set of its moves has changes that add up to 0, or undoing them would be as
# good. Put the moves in an order in which a sum <= 0 is followed by a rise and a sum > 0 by a fall, as long as there
# are any. With rises of at most U and falls of at most D, and an end in 0..residual, every prefix sum lies in
# 1-D .. max(U, residual), and no two are equal. So there are at most U + D - 1 moves (with U >= residual), and their
# rises (their falls) add up to at most U * D + residual: that is the window which the dense programme needs, in
# whichever order it meets the sequences. And of the options with one and the same change only the U + D - 1 that lose
# least are needed, as one of them is always free. (The Steinitz argument of Eisenbrand and Weismantel, 2018.)


def _reach(options: Options, residual: int) -> tuple[int, int]:
    """U and D of the argument above."""
    changes = options.change
    return max(int(changes.max(initial=0)), residual), max(int(-changes.min(initial=0)), 0)


def _needed_options(options: Options, residual: int) -> Options:
    rise, fall = _reach(options, residual)
    n_moves = max(rise + fall - 1, 1)
    order = np.lexsort((options.loss, options.sequence, options.change))
    change, sequence = options.change[order], options.sequence[order]
    # Two routes of one sequence at one cost: the better one is enough, and the count below is over sequences.
    first = np.ones(len(order), dtype=bool)
    first[1:] = (change[1:] != change[:-1]) | (sequence[1:] != sequence[:-1])
    kept = options.take(order[first])
    order = np.lexsort((kept.loss, kept.change))
    change = kept.change[order]
    rank = np.arange(len(order)) - np.searchsorted(change, change, side="left")
    return kept.take(order[rank < n_moves])


def _search_dense(options: Options, residual: int, slope: float, tolerance: float) -> tuple[list[int], float, bool] | None:
    """The moves, their shortfall, True, by the least loss for every sum of changes in the window; None if that is wide."""
    rise, fall = _reach(options, residual)
    limit = rise * fall + residual
    # More than a sequence can move the sum is not needed either; the sums are upper estimates, which is enough.
    low = max(-limit, int(options.change[options.change < 0].sum()))
    high = max(min(limit, int(options.change[options.change > 0].sum())), residual)
    width, groups = high - low + 1, options.by_sequence()
    if 2 * len(groups) * width > _MAX_DENSE_CELLS or len(options) * width > _MAX_DENSE_WORK:
        return None
    loss = np.full(width, np.inf)
    loss[-low] = 0.0
    taken = np.zeros((len(groups), width), dtype=np.int16)
    n_done = 0
    for group in groups:
        before = loss.copy()
        for number, position in enumerate(group, start=1):
            change = int(options.change[position])
            if abs(change) >= width:
                continue
            source = slice(max(0, -change), width - max(0, change))
            target = slice(max(0, change), width - max(0, -change))
            moved = before[source] + options.loss[position]
            better = moved < loss[target]
            loss[target][better] = moved[better]
            taken[n_done, target][better] = number
        n_done += 1
        if loss[residual - low] <= tolerance:  # the bound of the linear relaxation is met
            break
    shortfalls = slope * (residual - np.arange(residual + 1)) + loss[-low : residual - low + 1]
    total = int(np.flatnonzero(shortfalls <= shortfalls.min() + tolerance)[0])  # the cheapest of the best
    moves, at = [], total - low
    for stage in range(n_done - 1, -1, -1):
        number = int(taken[stage, at])
        if number:
            moves.append(groups[stage][number - 1])
            at -= int(options.change[moves[-1]])
    return moves, float(shortfalls[total]), True


# Any changes: the undominated (cost, value) pairs within the ceiling. ------------------------------------------------


def _search_sparse(
    options: Options, residual: float, slope: float, ceiling: float, tolerance: float
) -> tuple[list[int], float, bool]:
    """The moves, their shortfall, and False where undominated states grew too many for the work allowed and were thinned."""
    groups = options.by_sequence()
    can_fall, can_rise = _still_possible(options, groups)
    n_moves = max(len(options) + len(groups), 1)
    max_states = int(np.clip(_MAX_SPARSE_WORK / n_moves, _MIN_STATES, _MAX_STATES))
    spent, loss = np.zeros(1), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    complete = True
    for stage, group in enumerate(groups):
        moves = np.append(-1, group)
        state = np.tile(np.arange(len(spent)), len(moves))
        move = np.repeat(moves, len(spent))
        new_spent = (spent + np.append(0.0, options.change[group])[:, None]).ravel()
        new_loss = (loss + np.append(0.0, options.loss[group])[:, None]).ravel()
        unspent = np.maximum(residual - new_spent - can_rise[stage], 0.0)
        kept = np.flatnonzero(
            (new_loss + slope * unspent <= ceiling + tolerance) & (new_spent + can_fall[stage] <= residual)
        )
        kept = kept[np.lexsort((new_loss[kept], new_spent[kept]))]
        gain = slope * new_spent[kept] - new_loss[kept]
        kept = kept[gain > np.append(-np.inf, np.maximum.accumulate(gain)[:-1])]  # worth more than every cheaper state
        if not len(kept):  # no solution lies under the ceiling
            return [], slope * residual, complete
        if len(kept) > max_states:
            complete = False
            kept = kept[_thin(new_spent[kept], new_loss[kept], max_states)]
        history.append((state[kept].astype(np.int32), move[kept].astype(np.int32)))
        spent, loss = new_spent[kept], new_loss[kept]
    shortfalls = np.where(spent <= residual, slope * (residual - spent) + loss, np.inf)
    at = int(np.flatnonzero(shortfalls <= shortfalls.min() + tolerance)[0])
    shortfall = float(shortfalls[at])
    if not np.isfinite(shortfall):
        return [], slope * residual, complete
    chosen = []
    for states, stage_moves in reversed(history):
        chosen.append(int(stage_moves[at]))
        at = int(states[at])
    return [position for position in chosen if position >= 0], shortfall, complete


def _still_possible(options: Options, groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """By how much the sequences after each one can still lower (<= 0) and raise (>= 0) the sum of changes."""
    falls = np.array([min(0.0, float(options.change[group].min())) for group in groups])
    rises = np.array([max(0.0, float(options.change[group].max())) for group in groups])
    return falls[::-1].cumsum()[::-1] - falls, rises[::-1].cumsum()[::-1] - rises


def _thin(spent: np.ndarray, loss: np.ndarray, n_states: int) -> np.ndarray:
    """The least loss in each of equally wide ranges of cost, so that what is left still reaches everywhere."""
    edges = np.linspace(spent[0], spent[-1], n_states)
    bins = np.searchsorted(edges, spent, side="right")
    order = np.lexsort((loss, bins))
    return np.sort(order[np.unique(bins[order], return_index=True)[1]])
