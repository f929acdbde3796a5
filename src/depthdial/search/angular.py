"""Angular distance: drop the contiguous block across which the hidden state turns least.

Gromov et al. (arXiv 2403.17887, section 3.2): the distance from the input of layer l to that of layer l + n is
arccos(cos(x_l, x_l+n)) / pi, and for each n the block of n layers with the smallest distance goes, wherever it starts; for
the last block the output of the last layer is the far end. The best blocks of different sizes need not lie in each other, so
the routes are not nested. They look at the last token of each text; here it is the mean over all tokens of prompt and
answer, for calibration sets are small, and the last token of an answer is often the one that ends it. Without their healing
(training).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from depthdial.search.method import Found, Memory, Problem
from depthdial.search.states import mean_over_tokens


@dataclass(frozen=True)
class Angular:
    name = "angular"
    source = "angular distance across contiguous blocks (Gromov et al., arXiv 2403.17887)"
    metric = None

    def pieces(self, problem: Problem, memory: Memory) -> int:
        return problem.n_batches - memory.state.get("batches", 0)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        distance = mean_over_tokens(problem, memory, angular_distance, advance).tolist()
        blocks = tuple(tuple(_best_block(problem, distance, n)) for n in range(1, problem.n_drops + 1))
        return Found(blocks, tuple(distance[i][i + 1] for i in range(problem.n_layers)), passes=1)


def angular_distance(units: torch.Tensor) -> torch.Tensor:
    """(n_tokens, n_layers + 1, n_layers + 1), in units of half a turn, from every state to every other."""
    units = units.transpose(0, 1)
    return (units @ units.transpose(1, 2)).clamp(-1, 1).arccos() / math.pi


def _best_block(problem: Problem, distance: list[list[float]], n: int) -> range:
    """The n layers in a row of least distance, for each unit of the cost that dropping them saves."""

    def key(start: int) -> tuple[float, float, int]:
        across = distance[start][start + n]
        return problem.costs.rate(across, range(start, start + n)), across, start

    start = min(range(problem.n_layers - n + 1), key=key)
    return range(start, start + n)
