"""Scores that are means over the tokens of the calibration texts: summed batch by batch, going on where a stop left them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from depthdial.search.method import Memory, Problem
from depthdial.search.states import TextStates


def mean_over_tokens(
    problem: Problem, memory: Memory, of: Callable[[TextStates], torch.Tensor], advance: Callable[[float], None]
) -> torch.Tensor:
    """Mean over all tokens of `of`, which gives one score, or one table of scores, for each token: (n_tokens, ..)."""
    n_done, n_tokens = memory.state.get("batches", 0), memory.state.get("tokens", 0)
    total = torch.tensor(memory.state.get("total", 0.0), dtype=torch.float64)
    for i, states in enumerate(problem.states(n_done), start=n_done + 1):
        total = total + of(states).double().sum(0).cpu()
        n_tokens += states.n_tokens
        memory.keep({"batches": i, "tokens": n_tokens, "total": total.tolist()})
        advance(1)
    return total / n_tokens
