"""Choose on some samples of every score, score on the others: what knowing a sequence is worth once luck is taken out.

A score is one draw from what an answer may be worth. Who chooses the best of many draws and is paid the same draws is paid
their luck too, and every further route is another draw. Whoever chooses on draws that are not paid gets, in expectation, the
expected score of what was chosen: no more than the best choice that knows every expected score, whatever the rule.

Tables here are (n_sequences, n_routes, n_samples); what is spent is a score table's costs over its bases. The samples are
split by their number, alike in all cells: then only whole numbers have to be independent of each other, and cells may share
the chance of one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthdial.oracles.exact.knapsack import BudgetProblem, prepare
from depthdial.oracles.score_table import ScoreTable

_LEAST_NOISE = 1e-9


@dataclass(frozen=True, eq=False)
class Allocations:
    """The budgeted oracle on guesses of the scores, at every budget; to be paid in other scores.

    Attributes:
        problem: the guesses and costs of the sequences in a random `order`, so that ties are broken at random.
    """

    problem: BudgetProblem
    order: np.ndarray

    @classmethod
    def of(
        cls, guesses: np.ndarray, costs: np.ndarray, rng: np.random.Generator, bases: np.ndarray | None = None
    ) -> Allocations:
        """Of guesses and costs (n_sequences, n_routes); `bases`, whose sum totals are divided by, None for mean costs."""
        order = rng.permutation(len(guesses))
        return cls(prepare(guesses[order], costs[order], bases=None if bases is None else bases[order]), order)

    def paid(self, scores: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """Mean of `scores`, (n_sequences, n_routes), over what is chosen within each budget; straight between breakpoints.

        Between two breakpoints one sequence takes the step at random, with the probability that spends the budget.
        """
        steps, paid = self.problem.increments, scores[self.order]
        start = paid[np.arange(len(paid)), steps.hull[:, 0]].sum()
        after, before = (steps.hull[steps.sequence, steps.step - back] for back in (0, 1))
        gains = paid[steps.sequence, after] - paid[steps.sequence, before]
        totals = np.concatenate(([start], gains)).cumsum()
        return np.interp(budgets, self.problem.breakpoint_costs, totals / len(paid))

    def choices(self, n_points: int) -> np.ndarray:
        """(n_sequences, at most n_points) routes at breakpoints, evenly spread in cost, the first and last among them."""
        at = self.problem.spread_breakpoints(n_points)
        return self.problem.increments.choices_after(at)[np.argsort(self.order)]


# Allocations, and the (n_sequences, n_routes) scores that they are paid in.
Fitted = tuple[Allocations, np.ndarray]


def choosing_sets(n_samples: int, size: int, n_splits: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Sets of `size` samples to choose on: the blocks of `n_splits` random orders of all, each set once.

    Every sample chooses about as often as any other. For half of the samples a set and its complement always come
    together, so that both halves choose and both pay.
    """
    found: dict[tuple[int, ...], None] = {}
    for _ in range(n_splits):
        order = rng.permutation(n_samples).tolist()
        for start in range(0, n_samples - size + 1, size):
            found[tuple(sorted(order[start : start + size]))] = None
    return list(found)


def shrunk(samples: np.ndarray) -> np.ndarray:
    """Best linear guesses of the expected scores, (n_sequences, n_routes), from a few samples, (.., .., n_samples).

    Each sequence's means are drawn to the means over all sequences by as much as is noise in them. The noise is known from
    how samples of one cell differ; what the means of the sequences vary beyond it, in directions over the routes, is real.
    Directions that vary no more than noise alone would show (the edge of Marchenko and Pastur's law, 1967) are given up
    entirely: on pure noise every sequence is guessed alike, and without noise the guesses are the means. One sample says
    nothing about noise and is taken as it is. (Empirical Bayes; Efron and Morris, JASA 68, 1973.)
    """
    n, n_routes, n_samples = samples.shape
    means = samples.mean(axis=2)
    noise = samples.var(axis=2, ddof=1).mean(axis=0) / n_samples if n_samples > 1 else np.zeros(n_routes)
    # Equal numbers may differ by their rounding, which is no noise.
    if noise.max() <= (1e-12 * np.abs(samples).max()) ** 2:
        return means
    scale = np.sqrt(np.maximum(noise, _LEAST_NOISE * noise.max()))
    centre = means.mean(axis=0)
    whitened = (means - centre) / scale
    power, directions = np.linalg.eigh(whitened.T @ whitened / max(n - 1, 1))
    edge = (1 + np.sqrt(n_routes / n)) ** 2
    kept = np.where(power > edge, 1 - 1 / np.maximum(power, edge), 0.0)
    return centre + (whitened @ (directions * kept)) @ directions.T * scale


def fitted(
    values: np.ndarray,
    spending: ScoreTable,
    sets: Sequence[tuple[int, ...]],
    rng: np.random.Generator,
    *,
    shrink: bool = False,
    held_out: bool = True,
) -> list[Fitted]:
    """For each set the allocations chosen on its samples, and the means of all others (or the same) to pay them in."""
    found = []
    for chosen in sets:
        samples = values[:, :, list(chosen)]
        guesses = shrunk(samples) if shrink else samples.mean(axis=2)
        paid = values[:, :, np.setdiff1d(np.arange(values.shape[2]), chosen)] if held_out else samples
        found.append((Allocations.of(guesses, spending.costs, rng, spending.bases), paid.mean(axis=2)))
    return found


def mean_paid(fitted: Sequence[Fitted], budgets: np.ndarray) -> np.ndarray:
    """(n_budgets,) mean value within each budget, over all sets."""
    return np.mean([allocations.paid(paid, budgets) for allocations, paid in fitted], axis=0)


def permuted_held_out_curve(
    values: np.ndarray,
    spending: ScoreTable,
    budgets: np.ndarray,
    rng: np.random.Generator,
    *,
    n_permutations: int,
    shrink: bool,
) -> np.ndarray:
    """The mean held-out curve at half of the samples on cells shuffled over the sequences, independently within each route.

    A cell keeps its samples together, and costs stay with their sequences: a cell's luck stays out of what is paid, and what
    its sequence shares with other routes is gone.
    """
    n, n_routes, n_samples = values.shape
    curves = []
    for _ in range(n_permutations):
        shuffle = rng.permuted(np.tile(np.arange(n)[:, None], (1, n_routes)), axis=0)
        sets = choosing_sets(n_samples, n_samples // 2, 1, rng)
        shuffled = values[shuffle, np.arange(n_routes)]
        curves.append(mean_paid(fitted(shuffled, spending, sets, rng, shrink=shrink), budgets))
    return np.mean(curves, axis=0)
