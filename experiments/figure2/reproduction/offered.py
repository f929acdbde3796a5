"""The star by the number of routes that the oracle may choose from: every further route is one more draw of each score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from depthdial.oracles.baselines import crossing
from depthdial.oracles.exact.knapsack import prepare

if TYPE_CHECKING:
    from reproduction.results import Scores

N_SUBSETS, N_SHUFFLES = 40, 20


@dataclass(frozen=True)
class Offered:
    """Stars of the oracle on some routes, in layers, over sets of as many of them.

    Attributes:
        routes: how many routes each set holds, the full one among them.
        sets: how many sets, drawn without repetition.
        mean, lowest, highest: of their stars, with the measured scores.
        shuffled_mean: of the same sets on scores shuffled over the sequences within each route, each set as often as makes
            `N_SHUFFLES` shuffles or more of all.
    """

    routes: int
    sets: int
    mean: float
    lowest: float
    highest: float
    shuffled_mean: float


def stars_by_routes_offered(scores: Scores, costs: Mapping[str, int], seed: int) -> list[Offered]:
    """Stars for every number of routes from 2 to all, of at most `N_SUBSETS` random sets that hold the full route.

    A set always matches the full model at the latest by sending every sequence there.
    """
    rng = np.random.default_rng([seed, 3])
    layers = np.array([costs[route] for route in scores.routes], dtype=float)
    shallow, full = np.arange(len(layers) - 1), len(layers) - 1
    found = []
    for size in range(1, len(layers)):
        chosen = _sets(shallow, size, rng)
        stars, shuffled = [], []
        for one in chosen:
            columns = [*one, full]
            values = scores.values[:, columns]
            stars.append(_star(values, layers[columns]))
            for _ in range(math.ceil(N_SHUFFLES / len(chosen))):
                shuffled.append(_star(rng.permuted(values, axis=0), layers[columns]))
        ends = (min(stars), max(stars), float(np.mean(shuffled)))
        found.append(Offered(size + 1, len(stars), float(np.mean(stars)), *ends))
    return found


def _sets(routes: np.ndarray, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if math.comb(len(routes), size) <= N_SUBSETS:
        return list(combinations(routes.tolist(), size))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < N_SUBSETS:
        drawn[tuple(sorted(rng.choice(routes, size, replace=False).tolist()))] = None
    return list(drawn)


def _star(values: np.ndarray, layers: np.ndarray) -> float:
    """Where the curve, straight between its breakpoints, reaches the mean of the last column."""
    problem = prepare(values, layers)
    at = crossing(problem.breakpoint_costs, problem.breakpoint_values, float(values[:, -1].mean()))
    return float(layers[-1]) if at is None else at  # only rounding can miss the full route itself
