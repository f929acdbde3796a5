"""Greedy: drop one layer after the other, each time the one whose absence does least harm to what is left.

From the full model down, the layer goes at each round without which the route's KL to the full model (or the NLL of the
references) rises least. Nested routes, one for each number of layers. In the manner of SLEB (Song et al., arXiv 2402.09025),
which uses perplexity.

Every round tries only the layers that looked cheapest when they were last tried (after the accelerated greedy of Minoux,
1978): exact if dropping a layer never gets cheaper once others are gone, which holds nearly; `screen=None` tries them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from depthdial.search.method import Found, Memory, Problem


@dataclass(frozen=True)
class Dropped:
    """One set of dropped layers with its path; JSON-ready, so that a stopped search goes on.

    Attributes:
        layers, harm: in the order of their drop, and KL or NLL after each, in nats.
        increments: (n_layers,) what dropping each added when it was last tried on this path.
    """

    layers: list[int]
    harm: list[float]
    increments: list[float]


@dataclass(frozen=True)
class Greedy:
    """
    Attributes:
        screen: layers tried on each set after the first round; None tries all that are left.
    """

    metric: str = "kl"
    screen: int | None = 8

    source = "nested greedy; after SLEB (arXiv 2402.09025) and Minoux (1978)"
    # What `Beam` has as options.
    beam_width = 1
    nested = True

    @property
    def name(self) -> str:
        return f"greedy-{self.metric}"

    def pieces(self, problem: Problem, memory: Memory) -> int:
        n_left = range(problem.n_layers - len(memory.state.get("best", ())), problem.min_layers, -1)
        n_sets = min(self.beam_width, problem.n_layers)
        return sum(n_tried(n, problem.n_layers, self.screen) * (n_sets if n < problem.n_layers else 1) for n in n_left)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        nothing = {"layers": [], "harm": [], "increments": [0.0] * problem.n_layers}
        state: dict[str, Any] = memory.state or {"beam": [nothing], "best": [], "passes": 0, "importance": []}
        while len(state["best"]) < problem.n_drops:
            beam, harm = self._round([Dropped(**one) for one in state["beam"]], problem, advance)
            state = {
                "beam": [asdict(one) for one in beam],
                "best": [*state["best"], asdict(beam[0])],
                "passes": state["passes"] + len(harm),
                "importance": state["importance"] or [harm[frozenset([i])] for i in range(problem.n_layers)],
            }
            memory.keep(state)
        best = [Dropped(**one) for one in state["best"]]
        if self.nested:  # the path of the last
            best = [Dropped(best[-1].layers[:n], best[-1].harm[:n], []) for n in range(1, problem.n_drops + 1)]
        dropped, harms = tuple(tuple(one.layers) for one in best), tuple(one.harm[-1] for one in best)
        return Found(dropped, tuple(state["importance"]), state["passes"], harms)

    def _round(
        self, beam: list[Dropped], problem: Problem, advance: Callable[[float], None]
    ) -> tuple[list[Dropped], dict[frozenset[int], float]]:
        """The best sets of one more layer, the best first, and the harm of all that were tried."""
        tried = [self._tried(one, problem) for one in beam]
        times = Counter(gone for sets in tried for gone in sets.values())  # two paths may lead to one set
        harm: dict[frozenset[int], float] = {}
        for gone, value in zip(times, problem.each_harm([problem.without(gone) for gone in times]), strict=True):
            harm[gone] = value
            for _ in range(times[gone]):
                advance(1)
        children: dict[frozenset[int], Dropped] = {}
        for one, sets in zip(beam, tried, strict=True):
            now = one.harm[-1] if one.harm else problem.start_harm
            increments = list(one.increments)
            for layer, gone in sets.items():
                increments[layer] = harm[gone] - now
            for layer, gone in sets.items():
                children.setdefault(gone, Dropped([*one.layers, layer], [*one.harm, harm[gone]], increments))
        return sorted(children.values(), key=lambda child: self._rank(child, problem))[: self.beam_width], harm

    def _tried(self, one: Dropped, problem: Problem) -> dict[int, frozenset[int]]:
        """The layers that looked cheapest when they were last tried, and the sets that they make."""
        kept = [layer for layer in range(problem.n_layers) if layer not in one.layers]
        kept.sort(key=lambda layer: (problem.costs.rate(one.increments[layer], [layer]), layer))
        n = n_tried(len(kept), problem.n_layers, self.screen)
        return {layer: frozenset([*one.layers, layer]) for layer in kept[:n]}

    def _rank(self, child: Dropped, problem: Problem) -> tuple[float, float, list[int]]:
        """Of what the last drop added. Where layers cost the same, the least harm wins even where two rates are equal."""
        last = child.layers[-1]
        return problem.costs.rate(child.increments[last], [last]), child.harm[-1], [last]


def n_tried(n_left: int, n_layers: int, screen: int | None) -> int:
    """How many of the layers that are left a round tries: all in the first round, else `screen` (None: all)."""
    return n_left if screen is None or n_left == n_layers else min(n_left, screen)
