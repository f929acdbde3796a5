"""KnapSpec: a knapsack over layers, whose value is how near the hidden state stays to the full model's.

Cha et al. (arXiv 2602.20217): walk the layers once; for every amount of time saved so far keep the one branch whose hidden
state has the greatest cosine similarity with the full model's at that place, and either run the next layer on it or skip it.
They show that this similarity bounds a draft's acceptance from below. The first and the last layer always run. As in their
code, the branches see the last tokens of a text, behind keys and values of the full model: here the full model's own answers
behind calibration prompts at full depth.

What differs: they take attention and MLP apart, where a route here has whole layers, so that what a layer weighs is
nearly the same for all: branches are kept by the number of skipped layers, and distance is weighed by the cost that a
branch saves, as in the other methods. They choose the set anew while they decode, the amount skipped by tokens per time;
here there is one set for each number of layers. They drop branches below a similarity of 0.5; here every number keeps one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from depthdial.errors import InputError
from depthdial.search.method import Found, Memory, Problem

_Branches = dict[int, tuple[int, ...]]  # by the number of layers that are skipped: those that run


@dataclass(frozen=True)
class KnapSpec:
    name = "knapspec"
    source = "knapsack over layers by cosine similarity of hidden states (KnapSpec, arXiv 2602.20217), whole layers"
    metric = None

    def pieces(self, problem: Problem, memory: Memory) -> int:
        return problem.n_layers - memory.state.get("layers", 1)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        if problem.min_layers < 2:
            raise InputError(
                f"The argument min_layers is {problem.min_layers}: knapspec always runs the first and the last layer: "
                "give 2 or more."
            )
        state = memory.state or {"layers": 1, "kept": [[0]], "importance": [], "runs": 1}
        branches: _Branches = {state["layers"] - len(kept): tuple(kept) for kept in state["kept"]}
        states = {n: problem.answer_states(kept) for n, kept in branches.items()}
        importance, runs = list(state["importance"]), state["runs"]
        full = states[0]
        for layer in range(state["layers"], problem.n_layers):
            before, full = full, problem.answer_states(range(layer + 1))
            importance.append(1 - _similarity(before, full))
            branches, states = _step(problem, layer, branches, states, full)
            runs += len(branches)
            memory.keep(
                {"layers": layer + 1, "kept": [list(k) for k in branches.values()], "importance": importance, "runs": runs}
            )
            advance(1)
        dropped = tuple(_others(branches[n], problem.n_layers) for n in range(1, problem.n_drops + 1))
        # The first layer, whose input is an embedding, is compared with nothing.
        return Found(dropped, (1.0, *importance), passes=-(-runs // problem.n_layers))


def _step(
    problem: Problem, layer: int, branches: _Branches, states: dict[int, torch.Tensor], full: torch.Tensor
) -> tuple[_Branches, dict[int, torch.Tensor]]:
    """The best branch for each number of skipped layers once `layer` has run or been skipped, and its states."""
    found: dict[int, tuple[tuple[float, float], tuple[int, ...], torch.Tensor]] = {}

    def offer(kept: tuple[int, ...], state: torch.Tensor) -> None:
        distance, gone = 1 - _similarity(state, full), _others(kept, layer + 1)
        key = (problem.costs.rate(distance, gone) if gone else distance, distance)
        if len(gone) not in found or key < found[len(gone)][0]:
            found[len(gone)] = (key, kept, state)

    for n, kept in branches.items():
        offer((*kept, layer), full if n == 0 else problem.answer_states((*kept, layer)))
        if layer < problem.n_layers - 1 and n < problem.n_drops:
            offer(kept, states[n])
    return {n: one[1] for n, one in found.items()}, {n: one[2] for n, one in found.items()}


def _similarity(states: torch.Tensor, others: torch.Tensor) -> float:
    """Mean cosine of (n_tokens, width) directions."""
    return float((states * others).sum(-1).double().mean())


def _others(kept: Sequence[int], n_layers: int) -> tuple[int, ...]:
    return tuple(i for i in range(n_layers) if i not in kept)
