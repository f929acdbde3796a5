"""Decoding of a batch of prompts on a route, timed: what quality is measured on.

The paper decodes greedily (arXiv 2410.20022, section 5). A policy with a temperature draws answers instead; all chance comes
in from outside, as one number in [0, 1) a token, so that a draw depends neither on the batch that it is made in nor on the
state of anybody's random generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap
from depthdial.hf.ends import eos_ids as eos_ids
from depthdial.views.prompted import Prefill, clock_sec
from depthdial.views.tokens.depth import Depth, TokenDepth, prompted

FinishReason = Literal["eos", "length"]

# Below this, dividing by the temperature overflows; what it would choose is the greedy token anyway.
_LOWEST_TEMPERATURE = 1e-4


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class DecodingPolicy:
    """How the next token is chosen from the logits.

    Attributes:
        temperature: what logits are divided by before a token is drawn; 0 is greedy, the token with the largest logit.
        top_p: tokens are drawn from the fewest likeliest ones that together hold this probability, at the temperature
            (nucleus sampling, arXiv 1904.09751); 1 is all of them.

    Raises:
        InputError: for numbers that are none of these.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        hot = _is_number(self.temperature) and math.isfinite(self.temperature)
        if not hot or (self.temperature != 0 and self.temperature < _LOWEST_TEMPERATURE):
            raise InputError(
                f"temperature must be a number of at least {_LOWEST_TEMPERATURE} to draw answers, or 0 for greedy ones, "
                f"not {self.temperature!r}."
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be a probability above 0 and at most 1, not {self.top_p!r}.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


GREEDY = DecodingPolicy()


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
    from transformers import GenerationConfig

    runner: Any = prompted(model, route, prefilled)
    # Drawing is a logits processor that leaves one token: to transformers every policy is greedy.
    runner.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(eos_token_ids) or None,
        pad_token_id=pad_token_id,
        bos_token_id=getattr(unwrap(model).generation_config, "bos_token_id", None),
    )
    options = {} if policy.is_greedy else {"logits_processor": _drawing(policy, draws, prefilled, max_new_tokens)}
    started = clock_sec(prefilled.input_ids.device)
    output: Any = runner.generate(prefilled.input_ids, attention_mask=prefilled.attention_mask, **options)
    decode_sec = clock_sec(prefilled.input_ids.device) - started
    new = output[:, prefilled.input_ids.shape[1] :].tolist()
    answers = [cut_at_end(row, eos_token_ids) for row in new]
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


def draw_tokens(logits: torch.Tensor, draws: torch.Tensor, policy: DecodingPolicy) -> torch.Tensor:
    """One token for each row, by inverting the cumulative distribution at the row's draw.

    Args:
        logits: (n_sequences, vocabulary), of any float type.
        draws: (n_sequences,) numbers in [0, 1).

    Returns:
        (n_sequences,) token ids; never one of probability 0.

    Raises:
        InputError: if the logits are not finite.
    """
    logits = logits.float()
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / policy.temperature).softmax(-1)
    if not probabilities.isfinite().all():
        raise InputError("The model's logits are not finite, so no token can be drawn: try --dtype float32.")
    order = None
    if policy.top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= policy.top_p, 0.0)
    reached = probabilities.cumsum(-1)
    total = reached[:, -1:]
    wanted = draws[:, None].to(total) * total
    # Rounding may lift a draw to the total, behind the last token that can be drawn.
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    places = torch.searchsorted(reached, wanted, right=True)
    return (places if order is None else order.gather(-1, places))[:, 0]


def _drawing(policy: DecodingPolicy, draws: torch.Tensor | None, prefilled: Prefill, max_new_tokens: int) -> Any:
    from transformers import LogitsProcessorList

    rows, prompt_tokens = prefilled.input_ids.shape
    if draws is None or draws.shape[0] != rows or draws.shape[1] < max_new_tokens:
        told = None if draws is None else tuple(draws.shape)
        raise ValueError(f"draws have shape {told} where a policy draws {rows} answers of {max_new_tokens} tokens.")
    draws = draws.to(prefilled.input_ids.device)

    def leave_one(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = draw_tokens(scores, draws[:, input_ids.shape[1] - prompt_tokens], policy)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

    return LogitsProcessorList([leave_one])


def cut_at_end(tokens: list[int], eos_token_ids: Sequence[int]) -> tuple[list[int], FinishReason]:
    """The tokens up to and with the first end token, and why they end there."""
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1], "eos"
    return tokens, "length"
