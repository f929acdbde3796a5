"""One replica of a server under load: continuous batching, with a latency model as its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depthdial.latency.model import LatencyModel

# Layers of a request, from its number and how many others wait when it is admitted.
Depths = Callable[[int, int], float]
_WARM_SHARE = 0.2  # of the requests, which find an emptier replica than the others and are not counted


@dataclass(frozen=True)
class Replica:
    """How a replica takes requests.

    Attributes:
        max_rows: answers that decode together.
        max_prefills: prompts of one pass; decoding waits for it.
        prompt_tokens: of each prompt.
        new_tokens: mean tokens of an answer; they are drawn from a geometric distribution.
        prompt_share: of the layers that prompts run.
    """

    latency: LatencyModel
    max_rows: int
    max_prefills: int
    prompt_tokens: int
    new_tokens: int
    prompt_share: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What requests met.

    Attributes:
        first_token_sec: (n,) from arrival to the first token.
        token_sec: (n,) mean seconds of each further token; nan for answers of one token.
        busy_share: of the time in which the replica worked.
        rows: mean answers that decoded together.
        layers: mean layers of a decoded token.
        longer: whether the queue still grew: the last third waited twice as long as the first one, and over a second.
    """

    first_token_sec: np.ndarray
    token_sec: np.ndarray
    busy_share: float
    rows: float
    layers: float
    longer: bool


def simulate(replica: Replica, requests_per_sec: float, depths: Depths, n_requests: int, seed: int = 0) -> Outcome:
    """Requests that arrive as a Poisson process, first come, first served."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / requests_per_sec, n_requests))
    wanted = rng.geometric(1 / replica.new_tokens, n_requests)
    first, last = np.zeros(n_requests), np.zeros(n_requests)
    latency, context = replica.latency, replica.prompt_tokens + replica.new_tokens / 2
    prompt_layers = replica.prompt_share * latency.n_layers
    rows: list[list[float]] = []  # of each: number, tokens that are left, layers
    now = busy = tokens = layer_tokens = steps = 0.0
    next_one = 0
    while next_one < n_requests or rows:
        if not rows and arrivals[next_one] > now:
            now = float(arrivals[next_one])
        waiting = int(np.searchsorted(arrivals, now, "right")) - next_one
        admitted = min(waiting, replica.max_rows - len(rows), replica.max_prefills)
        started = now
        if admitted > 0:
            now += latency.prefill_sec(admitted, replica.prompt_tokens, prompt_layers)
            for one in range(next_one, next_one + admitted):
                first[one] = last[one] = now
                if wanted[one] > 1:
                    rows.append([one, wanted[one] - 1, depths(one, waiting - admitted)])
            next_one += admitted
        if rows:
            now += latency.step_sec([row[2] for row in rows], context)
            steps, tokens = steps + 1, tokens + len(rows)
            layer_tokens += sum(row[2] for row in rows)
            for row in rows:
                row[1] -= 1
                last[int(row[0])] = now
            rows = [row for row in rows if row[1]]
        busy += now - started
    counted = slice(int(_WARM_SHARE * n_requests), None)
    waits = first - arrivals
    with np.errstate(invalid="ignore"):
        each = np.where(wanted > 1, (last - first) / np.maximum(wanted - 1, 1), np.nan)
    thirds = np.array_split(waits[counted], 3)
    earlier, later = np.median(thirds[0]), np.median(thirds[-1])
    return Outcome(
        waits[counted],
        each[counted],
        busy / now,
        tokens / max(steps, 1),
        layer_tokens / max(tokens, 1),
        bool(later > 2 * earlier and later > 1),
    )


def most_requests(
    replica: Replica, depths: Depths, first_token_sec: float, n_requests: int, seed: int = 0, *, quantile: float = 0.95
) -> float:
    """Requests per second at which a quantile of the times to the first token is `first_token_sec`; by bisection, to 1%.

    Args:
        first_token_sec: more than a prompt takes alone.
    """

    def holds(rate: float) -> bool:
        outcome = simulate(replica, rate, depths, n_requests, seed)
        return not outcome.longer and float(np.quantile(outcome.first_token_sec, quantile)) <= first_token_sec

    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
