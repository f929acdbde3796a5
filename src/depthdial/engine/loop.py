"""The one decode loop: a prompt's pass, then step after step, until every answer of the batch is over.

Sweeps, searches, controllers, benchmarks and `generate` all run it, so that what is measured is what is used. The layers are
transformers' own; each step is one forward pass of one token a row, on the cache of the layers that run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from depthdial.engine.prefill import Prefill, continuing
from depthdial.engine.sampler import Sampler
from depthdial.hf.architectures import accepts
from depthdial.hf.cache_name import cache_argument
from depthdial.views.passes import positions
from depthdial.views.tokens.depth import Depth


def decode_tokens(
    model: Any,
    depth: Depth,
    prefilled: Prefill,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    pad_token_id: int,
    on_tokens: Callable[[torch.Tensor], None] | None = None,
) -> list[list[int]]:
    """Continue prefilled prompts at a depth; the first token comes out of the prompt's pass.

    Args:
        model: in evaluation mode; call inside `as_is`.
        sampler: of this batch, and used up by it.
        on_tokens: told the (n_sequences,) tokens of each step as they come.

    Returns:
        The tokens of each row, as many of each as the longest answer has; `sampler.cut` ends an answer.
    """
    runner, cache = continuing(model, depth, prefilled)
    ids, mask, logits = prefilled.input_ids, prefilled.attention_mask, prefilled.logits
    width = ids.shape[1]
    is_over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        tokens = sampler.next_tokens(ids, logits[:, -1].to(torch.float32, copy=True))
        tokens = tokens.masked_fill(is_over, pad_token_id)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        if on_tokens is not None:
            on_tokens(tokens)
        is_over = is_over | sampler.ended(ids)
        if ids.shape[1] - width >= max_new_tokens or bool(is_over.all()):
            return ids[:, width:].tolist()
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = continue_on(runner, cache, tokens[:, None], mask).logits


def continue_on(runner: Any, cache: Any, tokens: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
    """The output of one pass over `tokens`, (n_sequences, n_tokens), behind what the cache holds.

    Args:
        attention_mask: (n_sequences, cached + n_tokens), 0 for padding.
        options: further arguments of the model's forward.
    """
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": attention_mask}
    if accepts(runner, "position_ids"):
        inputs["position_ids"] = positions(attention_mask, n_last=tokens.shape[1])
    return runner(**inputs, **cache_argument(runner, cache), use_cache=True, **options)
