"""The chance in sampled answers: a stream of numbers for each (seed, sequence, route, sample), and for nothing else.

So a row is the same in whichever batch, order or process it is made, and a killed run goes on with the rows that it would
have had. Streams share nothing with each other: an answer says nothing about how lucky another one was, which is what
choosing on some samples and scoring on others rests on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from depthdial.engine.decode import GREEDY, DecodingPolicy
from depthdial.errors import InputError
from depthdial.views.tokens.depth import Depth


def sampling_policy(samples: int, temperature: float, top_p: float) -> DecodingPolicy:
    """The policy of a sweep with so many sampled answers of each (sequence, route); greedy for none.

    Raises:
        InputError: for a number of samples that is none, a policy that cannot be sampled from, or one that no answer
            would be sampled with.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0:
        raise InputError(f"samples must be a whole number, 0 for greedy answers, not {samples!r}.")
    policy = DecodingPolicy(temperature, top_p)
    if samples == 0:
        if policy != DecodingPolicy(1.0, 1.0):
            raise InputError("temperature and top_p are for sampled answers: say how many with samples, such as 8.")
        return GREEDY
    if policy.is_greedy:
        raise InputError("temperature must be above 0 for sampled answers: at 0 all samples are the same greedy answer.")
    return policy


def sampled_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics of sampled answers: all but the one that is on the reference.

    Raises:
        InputError: for `nll`, which is teacher-forced on the reference, and so the same for every sample.
    """
    if "nll" in metrics:
        raise InputError("nll does not depend on the answers that are sampled: sweep it without samples.")
    return tuple(metrics)


def draws(seed: object, answers: Sequence[tuple[str, int]], route: Depth, n_tokens: int) -> torch.Tensor:
    """(n_answers, n_tokens) numbers in [0, 1) for `models.decode`.

    Args:
        seed: of the run.
        answers: (sequence id, number of the sample) of each row.
        route: the layers that run; its name does not matter.
        n_tokens: longest answer; a shorter table is the beginning of a longer one.
    """
    rows = [_stream(f"{seed}\n{route}\n{sample}\n{sequence_id}").random(n_tokens) for sequence_id, sample in answers]
    return torch.from_numpy(np.stack(rows))


def _stream(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
