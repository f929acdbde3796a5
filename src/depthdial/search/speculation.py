"""Routes that draft well: a search objective that is the expected speed-up of self-speculation.

With `metric="speculation"` a method looks for the drops whose routes say what the full model says and take little time, and
that skip late, so that the check need not run the layers before the first skipped one again. A route's harm is minus the
logarithm of its speed-up at its best draft length, by a latency model (see `oracles.speculation`); acceptance is counted
token by token on the full model's own greedy answers to the calibration prompts. SWIFT (Xia et al., arXiv 2410.06916)
searches skipped layers by the matched tokens of drafts, and KnapSpec (arXiv 2602.20217) by measured latencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from depthdial.latency.model import LatencyModel
from depthdial.oracles.drafts import rounds_of
from depthdial.oracles.speculation import DRAFT_TOKENS, RoundTimes
from depthdial.routes import Route, leading_layers
from depthdial.search.calibration import Calibration


@dataclass(frozen=True)
class DraftHarm:
    """The harm of a route as a draft; called with it.

    Attributes:
        reuse_prefix: whether the check leaves out what drafting has computed: not so where the routes run with adapters.
        rows: sequences that decode together.
    """

    calibration: Calibration
    latency: LatencyModel
    reuse_prefix: bool
    rows: int = 1

    def __call__(self, route: Route) -> float:
        """Minus the logarithm of the expected speed-up."""
        return -math.log(self.best(self.calibration.agreed(route), route)[0])

    def best(self, agreed: Sequence[str], route: Route) -> tuple[float, int]:
        """(expected speed-up, draft length) at the best length of 1 and more; below 1 where speculation does not pay.

        Args:
            agreed: of each text, which tokens are the full model's own: 1 and 0, the first the prompt's.
        """
        n_tokens, context = sum(len(text) - 1 for text in agreed), self.calibration.context_tokens
        found = []
        for k in DRAFT_TOKENS:
            n_rounds = sum(rounds_of(text, k) for text in agreed)
            if k and n_rounds:
                times = RoundTimes.of(self.latency, route, self.rows, k, context, reuse_prefix=self.reuse_prefix)
                found.append((float(times.speedup(n_tokens / n_rounds, k)), k))
        return max(found, default=(1.0, 0))

    def record(self, routes: Sequence[Route], harms: Sequence[float]) -> dict[str, object]:
        """For a family's `made_by`: the speed-up of each route, and how many of its first layers the check reuses."""
        return {
            "speedup": [math.exp(-harm) for harm in harms],
            "reused_layers": [leading_layers(route) if self.reuse_prefix else 0 for route in routes],
            "latency": {"model": self.latency.model, "hardware": self.latency.hardware, "date": self.latency.date},
            "rows": self.rows,
        }
