"""Block influence: drop the layers that turn the hidden state least.

ShortGPT (Men et al., arXiv 2403.03853, section 3.1): the influence of a layer is 1 - cos(its input, its output), the mean
over the tokens of calibration texts, from one forward pass; the layers of least influence go first. Nobody looks at what the
model says without them. They run plain texts; here it is the calibration prompts with the full model's own greedy answers
behind them, all tokens alike: that is what a model for instructions reads and writes, and no other text than the other
methods see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from depthdial.search.method import Found, Memory, Problem
from depthdial.search.states import mean_over_tokens


@dataclass(frozen=True)
class BlockInfluence:
    name = "block-influence"
    source = "block influence (ShortGPT, arXiv 2403.03853): 1 - cosine of a layer's input and output"
    metric = None

    def pieces(self, problem: Problem, memory: Memory) -> int:
        return problem.n_batches - memory.state.get("batches", 0)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        influence = mean_over_tokens(problem, memory, _influence, advance).tolist()
        return one_shot(problem, influence, influence, passes=1)


def one_shot(problem: Problem, harm: list[float], importance: list[float], passes: int) -> Found:
    """Drop the layers in the order of the harm that each does alone, for each unit of the cost that it saves.

    Args:
        harm, importance: (n_layers,); what to order by and what to show.
    """
    order = sorted(range(problem.n_layers), key=lambda layer: (problem.costs.rate(harm[layer], [layer]), harm[layer], layer))
    return Found(tuple(tuple(order[:n]) for n in range(1, problem.n_drops + 1)), tuple(importance), passes)


def _influence(units: torch.Tensor) -> torch.Tensor:
    """(n_tokens, n_layers)"""
    return 1 - (units[:-1] * units[1:]).sum(-1).T
