"""Log-probabilities of generated tokens, and of the likeliest ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token.

    They are the log-softmax of the model's own logits (guided ones with `guidance_scale`), before every bias, penalty,
    temperature and truncation, as OpenAI's and vLLM's are.

    Attributes:
        token: its id.
        logprob: its natural log-probability, at most 0.
        top: (token, logprob) of the likeliest tokens, likeliest first; the generated one need not be among them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def read_logprobs(logits: torch.Tensor, tokens: torch.Tensor, n_top: int) -> list[TokenLogprob]:
    """The log-probabilities of one token a row.

    Args:
        logits: (n_rows, vocabulary) of the model, not processed.
        tokens: (n_rows,) ids that were generated from them.
        n_top: how many likeliest tokens to tell, at most all of them.

    Example:
        >>> import torch
        >>> read_logprobs(torch.zeros(1, 4), torch.tensor([2]), 0)
        [TokenLogprob(token=2, logprob=-1.3862943649291992, top=())]
    """
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    likeliest = logprobs.topk(min(n_top, logprobs.shape[-1]), dim=-1)
    tops: Sequence[tuple[tuple[int, float], ...]] = [
        tuple(zip(*pair, strict=True)) for pair in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    ]
    return [TokenLogprob(*found) for found in zip(tokens.tolist(), own, tops, strict=True)]
