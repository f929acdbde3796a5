"""Ways of choosing routes compared at equal cost, on the sample of sequences and on resamples of it alike.

Whoever spends more should be better: so each way of choosing is held against the best static mixture of routes at the very
cost that it spent, and so are the oracles. On every resample all of it is done again: the routes' means, the hull of their
mixtures, what each way costs and is worth, and the oracles at that cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from depthdial.oracles.crossfit import Allocations
from depthdial.oracles.exact.hull import merge_increments
from depthdial.stats.bootstrap import ratios, resamples

# An oracle's curve is read off at so many of its breakpoints.
_CURVE_POINTS = 500


@dataclass(frozen=True, eq=False)
class Reached:
    """What a way of choosing costs and is worth beside the static mixture, each (n_draws, n_seeds, n_budgets)."""

    costs: np.ndarray
    values: np.ndarray
    mixture: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """(n_draws, n_budgets) over the mixture at equal cost, mean over the seeds."""
        return (self.values - self.mixture).mean(axis=1)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of n sequences with replacement; the first one is the sample itself, every sequence once.

    Attributes:
        values, costs: (n, n_routes).
        weights: (n_draws, n), each sequence's share of a draw.
        bases: (n,) a cost is the sum of what was spent over the sum of these, both of the draw; ones for a mean over
            sequences.
        counted: (n,) what a sequence's value weighs in its mean; ones for a mean over sequences.
    """

    values: np.ndarray
    costs: np.ndarray
    weights: np.ndarray
    bases: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        costs: np.ndarray,
        n_bootstrap: int,
        rng: np.random.Generator,
        *,
        bases: np.ndarray | None = None,
        counted: np.ndarray | None = None,
    ) -> Draws:
        n = len(values)
        base, weight = (np.ones(n) if given is None else given for given in (bases, counted))
        weights = np.concatenate([np.ones((1, n)), *resamples(rng, n_bootstrap, n, base * weight)]) / n
        return cls(values, costs, weights, base, weight)

    def mean(self, table: np.ndarray) -> np.ndarray:
        """(n_draws, ..) means over the sequences of a table (n, ..), each as one."""
        return ratios(self.weights, table)

    def value(self, table: np.ndarray) -> np.ndarray:
        """(n_draws, ..) mean quality of a table (n, ..)."""
        return ratios(self.weights, table * self.counted.reshape(-1, *[1] * (table.ndim - 1)), self.counted)

    def cost(self, table: np.ndarray) -> np.ndarray:
        """(n_draws, ..) cost of what (n, ..) was spent."""
        return ratios(self.weights, table, self.bases)

    @cached_property
    def fixed(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_draws, n_routes) values and costs of each route for every sequence."""
        return self.value(self.values), self.cost(self.costs)

    def chosen(self, choices: np.ndarray, overhead: float) -> Reached:
        """What choices (n, n_seeds, n_budgets) reach, where choosing itself costs `overhead` per sequence."""
        rows = np.arange(len(choices))[:, None, None]
        return self._reached(self.value(self.values[rows, choices]), self.cost(self.costs[rows, choices]) + overhead)

    def blind(self, choices: np.ndarray) -> Reached:
        """The same shares of routes handed to the sequences at random (expected value), which costs no overhead."""
        shares = self.mean((choices[..., None] == np.arange(self.values.shape[1])).astype(float))
        return self._reached(*(np.einsum("dsbr,dr->dsb", shares, fixed) for fixed in self.fixed))

    def mixture(self, costs: np.ndarray) -> np.ndarray:
        """The static mixture at costs (n_draws, ..) of each draw; below the cheapest route that route itself."""
        hull = merge_increments(*self.fixed).hull.astype(np.intp)
        values, at = (np.take_along_axis(fixed, hull, axis=1) for fixed in self.fixed)
        return interpolated(costs, at, values)

    def oracle(self, guesses: np.ndarray, costs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the budgeted oracle on guesses (n, n_routes) is paid at costs (n_draws, ..) of each draw.

        A choice at a breakpoint stays best for any draw at that draw's own mean cost, as in `baselines.bootstrap_curves`;
        the guesses stay those of the sample.
        """
        worth = guesses * self.counted[:, None]
        choices = Allocations.of(worth, self.costs, rng).choices(_CURVE_POINTS)
        rows = np.arange(len(choices))[:, None]
        return interpolated(costs, self.cost(self.costs[rows, choices]), self.value(self.values[rows, choices]))

    def _reached(self, values: np.ndarray, costs: np.ndarray) -> Reached:
        return Reached(costs, values, self.mixture(costs))


def interpolated(at: np.ndarray, costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Curves (n_draws, n_points), straight between their points and flat beyond, read at (n_draws, ..)."""
    return np.stack([np.interp(*one) for one in zip(at, costs, values, strict=True)])
