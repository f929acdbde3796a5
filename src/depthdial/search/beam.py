"""Beam search over drops: greedy that keeps several sets of dropped layers at a time.

The best first drop need not be part of the best three; a beam of some width finds sets that greedy's order misses. Each set
is extended as greedy would (same screening by what a drop last added, on the set's own path), equal sets are one, and the
best `beam_width` of each size live on. Width 1 is greedy, where layers cost the same. Beam search is Lowerre's (1976); the
harm is that of `greedy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from depthdial.search.greedy import candidates
from depthdial.search.method import Found, Memory, Problem, n_tried


@dataclass(frozen=True)
class BeamState:
    """One set of dropped layers with its path; JSON-ready.

    Attributes:
        dropped, harm: layers in the order of their drop, and KL or NLL after each.
        increments: by layer, what dropping it added when it was last tried on this path.
    """

    dropped: list[int]
    harm: list[float]
    increments: dict[int, float]

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> BeamState:
        return cls(stored["dropped"], stored["harm"], {int(k): v for k, v in stored["increments"].items()})


@dataclass(frozen=True)
class Beam:
    """
    Attributes:
        screen: layers tried on each set after the first round; None tries all that are left.
        beam_width: sets kept of each size.
        nested: give the path of the best smallest route; otherwise the best route of each size, which need not be nested.
    """

    metric: str
    screen: int | None
    beam_width: int
    nested: bool

    source = "beam search over drops, by the same measure as nested greedy (after SLEB, arXiv 2402.09025)"

    @property
    def name(self) -> str:
        return f"beam-{self.metric}" if self.nested else f"beam-{self.metric}-each"

    def pieces(self, problem: Problem, memory: Memory) -> int:
        n_done = len(memory.state.get("best", ()))
        n_states = min(self.beam_width, problem.n_layers)
        n_left = range(problem.n_layers - n_done, problem.min_layers, -1)
        return sum(n_tried(n, problem.n_layers, self.screen) * (n_states if n < problem.n_layers else 1) for n in n_left)

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        stored = memory.state
        beam = [BeamState.from_json(state) for state in stored.get("beam", ())] or [BeamState([], [], {})]
        best, passes = [BeamState.from_json(state) for state in stored.get("best", ())], stored.get("passes", 0)
        importance: list[float | None] = stored.get("importance") or [None] * problem.n_layers
        while len(best) < problem.n_drops:
            beam, n_run = _extended(beam, problem, self.screen, self.beam_width, advance)
            passes += n_run
            if not best:
                importance = [problem.start_harm + beam[0].increments[i] for i in range(problem.n_layers)]
            best.append(beam[0])
            kept = {"beam": [asdict(one) for one in beam], "best": [asdict(one) for one in best]}
            memory.keep({**kept, "passes": passes, "importance": importance})
        last = best[-1]
        if not self.nested:
            return Found(
                tuple(tuple(one.dropped) for one in best), tuple(importance), passes, tuple(one.harm[-1] for one in best)
            )
        path = tuple(tuple(last.dropped[:n]) for n in range(1, problem.n_drops + 1))
        return Found(path, tuple(importance), passes, tuple(last.harm))


def _extended(
    beam: list[BeamState], problem: Problem, screen: int | None, width: int, advance: Callable[[float], None]
) -> tuple[list[BeamState], int]:
    """The best sets of one more layer, the best first, and how many routes were tried."""
    harm: dict[frozenset[int], float] = {}
    children: dict[frozenset[int], BeamState] = {}
    for state in beam:
        now = state.harm[-1] if state.harm else problem.start_harm
        increments, tried = dict(state.increments), []
        for layer in candidates(problem, state.dropped, state.increments, screen):
            gone = frozenset([*state.dropped, layer])
            if gone not in harm:  # two paths may lead to one set
                harm[gone] = problem.harm(problem.without(sorted(gone)))
            increments[layer] = harm[gone] - now
            tried.append((layer, gone))
            advance(1)
        for layer, gone in tried:
            children.setdefault(gone, BeamState([*state.dropped, layer], [*state.harm, harm[gone]], increments))

    def key(gone: frozenset[int]) -> tuple[float, float, list[int]]:
        layers = sorted(gone)
        return problem.costs.rate(harm[gone] - problem.start_harm, layers), harm[gone], layers

    return [children[gone] for gone in sorted(children, key=key)[:width]], len(harm)
