"""Greedy decoding of a batch of prompts on a route, timed: what quality is measured on (arXiv 2410.20022, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from depthdial.models.architectures import unwrap
from depthdial.models.prompt import Prefill, clock_sec, prompted_view
from depthdial.routes import Route

FinishReason = Literal["eos", "length"]


@dataclass(frozen=True)
class Decoded:
    """Greedy answers of one batch.

    Attributes:
        tokens: one tuple a sequence, without padding, with the end token where one was generated.
        finish_reasons: `eos` or `length`, one a sequence.
        decode_sec: measured seconds of all steps after the first token (which the prefill gives), for the whole batch.
        steps: how many such steps the batch took.
    """

    tokens: tuple[tuple[int, ...], ...]
    finish_reasons: tuple[FinishReason, ...]
    decode_sec: float
    steps: int


def decode_greedy(
    model: Any,
    route: Route,
    prefilled: Prefill,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
) -> Decoded:
    """Continue prefilled prompts greedily on `route` for at most `max_new_tokens` tokens.

    The model's own generation settings (sampling, penalties) are set aside: greedy means the largest logit.
    """
    from transformers import GenerationConfig

    runner: Any = prompted_view(model, route, prefilled)
    runner.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(eos_token_ids) or None,
        pad_token_id=pad_token_id,
        bos_token_id=getattr(unwrap(model).generation_config, "bos_token_id", None),
    )
    started = clock_sec(prefilled.input_ids.device)
    output: Any = runner.generate(prefilled.input_ids, attention_mask=prefilled.attention_mask)
    decode_sec = clock_sec(prefilled.input_ids.device) - started
    new = output[:, prefilled.input_ids.shape[1] :].tolist()
    answers = [cut_at_end(row, eos_token_ids) for row in new]
    return Decoded(
        tuple(tuple(tokens) for tokens, _ in answers),
        tuple(reason for _, reason in answers),
        decode_sec,
        max(len(new[0]) - 1, 0),
    )


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer, by the model's generation settings and the tokenizer."""
    configured = getattr(unwrap(model).generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None}))


def cut_at_end(tokens: list[int], eos_token_ids: Sequence[int]) -> tuple[list[int], FinishReason]:
    """The tokens up to and with the first end token, and why they end there."""
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1], "eos"
    return tokens, "length"
