"""Beam search over drops: greedy that keeps several sets of dropped layers at a time.

The best first drop need not be part of the best three; a beam of some width finds sets that greedy's order misses. Each set
is extended as greedy would (same screening by what a drop last added, on the set's own path), equal sets are one, and the
best `beam_width` of each size live on. Width 1 is greedy, where layers cost the same. Beam search is Lowerre's (1976); the
harm is that of `greedy`.
"""

from __future__ import annotations

from dataclasses import dataclass

from depthdial.search.greedy import Dropped, Greedy
from depthdial.search.method import Problem


@dataclass(frozen=True)
class Beam(Greedy):
    """
    Attributes:
        beam_width: sets kept of each size.
        nested: give the path of the best smallest route; otherwise the best route of each size, which need not be nested.
    """

    beam_width: int = 4
    nested: bool = True

    source = "beam search over drops, by the same measure as nested greedy (after SLEB, arXiv 2402.09025)"

    @property
    def name(self) -> str:
        return f"beam-{self.metric}" if self.nested else f"beam-{self.metric}-each"

    def _rank(self, child: Dropped, problem: Problem) -> tuple[float, float, list[int]]:
        """Of what all drops together added."""
        layers = sorted(child.layers)
        return problem.costs.rate(child.harm[-1] - problem.start_harm, layers), child.harm[-1], layers
