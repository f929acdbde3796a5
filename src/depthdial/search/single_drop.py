"""Single drop: try every layer's absence once, and drop them in that order.

The one-shot form of SLEB (Song et al., arXiv 2402.09025, which tries all again after each drop, and uses perplexity): it
does not see that a layer may be needed once another is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from depthdial.search.block_influence import one_shot
from depthdial.search.method import Found, Memory, Problem


@dataclass(frozen=True)
class SingleDrop:
    metric: str = "kl"

    source = "each layer dropped alone; the one-shot form of SLEB (arXiv 2402.09025)"

    @property
    def name(self) -> str:
        return f"single-drop-{self.metric}"

    def pieces(self, problem: Problem, memory: Memory) -> int:
        return problem.n_layers - len(memory.state.get("harm", ()))

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        harm = list(memory.state.get("harm", ()))
        left = [problem.without([layer]) for layer in range(len(harm), problem.n_layers)]
        for value in problem.each_harm(left):
            harm.append(value)
            memory.keep({"harm": harm})
            advance(1)
        added = [one - problem.start_harm for one in harm]
        return one_shot(problem, added, harm, passes=problem.n_layers)
