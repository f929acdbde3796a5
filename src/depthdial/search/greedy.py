"""Greedy: drop one layer after the other, each time the one whose absence does least harm to what is left.

From the full model down, the layer goes at each round without which the route's KL to the full model (or the NLL of the
references) rises least. Nested routes, one for each number of layers. In the manner of SLEB (Song et al., arXiv 2402.09025),
which uses perplexity.

Every round tries only the layers that looked cheapest when they were last tried (after the accelerated greedy of Minoux,
1978): exact if dropping a layer never gets cheaper once others are gone, which holds nearly; `screen=None` tries them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from depthdial.search.method import Found, Memory, Problem, n_tried


@dataclass
class GreedyState:
    """How far a search has come; JSON-ready, so that a stopped search goes on.

    Attributes:
        dropped: layers in the order in which they were dropped.
        harm: KL or NLL after each drop, in nats.
        importance: that of dropping one layer alone, by layer: the first round.
        increments: by layer, what dropping it added when it was last tried.
        passes: routes tried.
    """

    dropped: list[int] = field(default_factory=list)
    harm: list[float] = field(default_factory=list)
    importance: dict[int, float] = field(default_factory=dict)
    increments: dict[int, float] = field(default_factory=dict)
    passes: int = 0

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> GreedyState:
        by_layer = {name: {int(k): v for k, v in stored[name].items()} for name in ("importance", "increments")}
        return cls(stored["dropped"], stored["harm"], by_layer["importance"], by_layer["increments"], stored["passes"])


@dataclass(frozen=True)
class Greedy:
    """
    Attributes:
        screen: layers tried in each round after the first; None tries all that are left.
    """

    metric: str
    screen: int | None

    source = "nested greedy; after SLEB (arXiv 2402.09025) and Minoux (1978)"

    @property
    def name(self) -> str:
        return f"greedy-{self.metric}"

    def pieces(self, problem: Problem, memory: Memory) -> int:
        n_done = len(_state(memory).dropped)
        n_left = range(problem.n_layers - n_done, problem.min_layers, -1)
        return sum(n_tried(n, problem.n_layers, self.screen) for n in n_left)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        state = _state(memory)
        while len(state.dropped) < problem.n_drops:
            greedy_round(state, problem, self.screen, advance)
            memory.keep(asdict(state))
        return Found(
            tuple(tuple(state.dropped[:n]) for n in range(1, problem.n_drops + 1)),
            tuple(state.importance.get(i) for i in range(problem.n_layers)),
            state.passes,
            tuple(state.harm),
        )


def greedy_round(state: GreedyState, problem: Problem, screen: int | None, advance: Callable[[float], None]) -> None:
    """Drop one more layer: the one whose absence adds least harm for each unit of cost saved, among those tried."""
    costs, now = problem.costs, state.harm[-1] if state.harm else problem.start_harm
    tried: dict[int, float] = {}
    for layer in candidates(problem, state.dropped, state.increments, screen):
        tried[layer] = problem.harm(problem.without([*state.dropped, layer]))
        state.increments[layer] = tried[layer] - now
        advance(1)
    if not state.dropped:
        state.importance = dict(tried)
    # Where layers cost the same, the least harm wins even where rounding leaves two rates equal.
    best = min(tried, key=lambda layer: (costs.rate(state.increments[layer], [layer]), tried[layer], layer))
    state.passes += len(tried)
    state.dropped.append(best)
    state.harm.append(tried[best])


def candidates(problem: Problem, dropped: list[int], increments: dict[int, float], screen: int | None) -> list[int]:
    """The layers to try next: those that looked cheapest when they were last tried."""
    kept = [layer for layer in range(problem.n_layers) if layer not in dropped]
    order = sorted(kept, key=lambda layer: (problem.costs.rate(increments.get(layer, 0.0), [layer]), layer))
    return order[: n_tried(len(kept), problem.n_layers, screen)]


def _state(memory: Memory) -> GreedyState:
    return GreedyState.from_json(memory.state) if memory.state else GreedyState()
