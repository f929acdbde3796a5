"""Decoding of a batch of prompts on a route, timed: what quality is measured on.

The paper decodes greedily (arXiv 2410.20022, section 5). A policy with a temperature draws answers instead, see `sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import GREEDY, DecodingPolicy, FinishReason
from depthdial.views.tokens.depth import Depth, TokenDepth


@dataclass(frozen=True)
class DecodedPart:
    """Rows of a batch that were decoded together; see `Decoded`."""

    rows: tuple[int, ...]
    decode_sec: float
    steps: int


@dataclass(frozen=True)
class Decoded:
    """Answers of one batch.

    Attributes:
        tokens: one tuple a sequence, without padding, with the end token where one was generated.
        finish_reasons: `eos` or `length`, one a sequence.
        decode_sec: measured seconds of all steps after the first token (which the prefill gives), for the whole batch.
        steps: how many such steps the batch took.
        ran: of a token-wise depth, which layers ran: a sequence's (n_tokens - 1, n_layers), without the first token.
        parts: where rows had unlike room in the context, the parts of the batch that were decoded one after another;
            seconds and steps are then their sums.
    """

    tokens: tuple[tuple[int, ...], ...]
    finish_reasons: tuple[FinishReason, ...]
    decode_sec: float
    steps: int
    ran: tuple[torch.Tensor, ...] | None = None
    parts: tuple[DecodedPart, ...] = ()

    def part_of(self, row: int) -> DecodedPart:
        """The rows that this one was decoded with."""
        whole = DecodedPart(tuple(range(len(self.tokens))), self.decode_sec, self.steps)
        return next((part for part in self.parts if row in part.rows), whole)


def joined(parts: Sequence[tuple[Sequence[int], Decoded]]) -> Decoded:
    """One batch of what was decoded in parts, each with the rows that it holds of the batch."""
    if len(parts) == 1:
        return parts[0][1]
    places = sorted((row, part, i) for part, (rows, _) in enumerate(parts) for i, row in enumerate(rows))
    found = [(parts[part][1], i) for _, part, i in places]
    return Decoded(
        tuple(one.tokens[i] for one, i in found),
        tuple(one.finish_reasons[i] for one, i in found),
        sum(one.decode_sec for _, one in parts),
        sum(one.steps for _, one in parts),
        None if parts[0][1].ran is None else tuple(one.ran[i] for one, i in found if one.ran is not None),
        tuple(DecodedPart(tuple(rows), one.decode_sec, one.steps) for rows, one in parts),
    )


def decode(
    model: Any,
    route: Depth,
    prefilled: Prefill,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    policy: DecodingPolicy = GREEDY,
    draws: torch.Tensor | None = None,
) -> Decoded:
    """Continue prefilled prompts on `route`, or at a token-wise depth, for at most `max_new_tokens` tokens.

    The model's own generation settings (sampling, penalties) are set aside: greedy means the largest logit.

    Args:
        draws: (n_sequences, at least max_new_tokens) numbers in [0, 1) that decide what a policy with a temperature draws,
            one for each token; not used by a greedy policy.

    Raises:
        ValueError: if a policy that draws has no draws of that shape.
    """
    sampler = Sampler.from_draws(policy, draws, eos_token_ids, len(prefilled.input_ids), max_new_tokens)
    started = clock_sec(prefilled.input_ids.device)
    new = decode_tokens(model, route, prefilled, sampler, max_new_tokens=max_new_tokens, pad_token_id=pad_token_id)
    decode_sec = clock_sec(prefilled.input_ids.device) - started
    answers = [sampler.answer(row) for row in range(len(new))]
    return Decoded(
        tuple(tuple(tokens) for tokens, _ in answers),
        tuple(reason for _, reason in answers),
        decode_sec,
        max(len(new[0]) - 1, 0),
        _ran(route, [len(tokens) - 1 for tokens, _ in answers]),
    )


def _ran(depth: Depth, n_steps: Sequence[int]) -> tuple[torch.Tensor, ...] | None:
    """What ran for the tokens of each answer: a batch goes on with padding until its last answer ends."""
    if not isinstance(depth, TokenDepth) or depth.trace is None:
        return None
    if not depth.trace.passes:  # every answer was one token, the prompt's own
        return tuple(torch.zeros(0, depth.n_layers, dtype=torch.bool, device="cpu") for _ in n_steps)
    ran = torch.cat([one.ran for one in depth.trace.passes], dim=1)
    return tuple(rows[:steps] for rows, steps in zip(ran, n_steps, strict=True))
