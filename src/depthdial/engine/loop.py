"""The one decode loop: a prompt's pass, then step after step, until every answer of the batch is over.

Sweeps, searches, controllers, benchmarks and `generate` all run it, so that what is measured is what is used. The layers are
transformers' own; each step is one forward pass of one token a row, on the cache of the layers that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from depthdial.engine.batch import in_rows
from depthdial.engine.prefill import Prefill, continue_on, continuing
from depthdial.engine.row_stream import RowStream
from depthdial.engine.sampler import Sampler
from depthdial.engine.speculation import Drafting
from depthdial.engine.speculative_stream import SpeculativeStream
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import Depth, TokenDepth


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2306.17806): logits are pushed away from those of the answer without its prompt.

    Attributes:
        scale: 1 changes nothing.
        unconditional: for each row a prompt of the last token alone.
    """

    scale: float
    unconditional: Prefill

    def applied(self, logits: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """The guided logits, (n_sequences, vocabulary)."""
        return guided(self.scale, logits, unconditional)


def guided(scale: float | torch.Tensor, logits: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    """Logits of answers, (n_sequences, vocabulary), pushed away from those of the answers without their prompts."""
    given, other = logits.log_softmax(-1), unconditional.log_softmax(-1)
    return scale * (given - other) + other


def decode_tokens(
    model: Any,
    depth: Depth | Sequence[Route],
    prefilled: Prefill,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    pad_token_id: int,
    on_tokens: Callable[[torch.Tensor], None] | None = None,
    guidance: Guidance | None = None,
    drafting: Drafting | None = None,
) -> list[list[int]]:
    """Continue prefilled prompts at a depth; the first token comes out of the prompt's pass.

    Args:
        model: in evaluation mode.
        depth: of all rows, or a route for each (of a model that is decoded in rows, see `in_rows`).
        sampler: of this batch, and used up by it.
        on_tokens: told the (n_sequences,) tokens of each place in the answers, as soon as all rows that go on have it.
        drafting: of answers at full depth, whose tokens are the same with it.

    Returns:
        The tokens of each row, as many of each as the longest answer has; `sampler.answer` has a row's own.
    """
    with as_is(prefilled.input_ids.device):
        sampler.limit(max_new_tokens)
        streams: list[Any] = []
        if guidance is not None:
            untraced = replace(depth, trace=None) if isinstance(depth, TokenDepth) else depth
            streams = [
                _stream(model, one, behind, max_new_tokens)
                for one, behind in ((depth, prefilled), (untraced, guidance.unconditional))
            ]
        elif drafting is not None and drafting.fits(model, depth, max_new_tokens):
            streams = [SpeculativeStream(model, prefilled, max_new_tokens, sampler, drafting)]
        else:
            streams = [_stream(model, depth, prefilled, max_new_tokens)]
        is_over = torch.zeros(prefilled.n_sequences, dtype=torch.bool, device=prefilled.input_ids.device)
        n_told = 0
        while True:
            logits = streams[0].last_logits()
            if guidance is not None:
                logits = guidance.applied(logits, streams[1].last_logits())
            tokens = sampler.next_tokens(logits).masked_fill(is_over, pad_token_id)
            is_over = torch.tensor(sampler.ended(tokens), device=tokens.device)
            if on_tokens is not None:
                for column in sampler.columns(n_told, pad_token_id):
                    n_told += 1
                    on_tokens(torch.tensor(column, device=tokens.device))
            if bool(is_over.all()):
                return sampler.padded(pad_token_id)
            for stream in streams:
                stream.step(tokens, is_over)


def _stream(model: Any, depth: Depth | Sequence[Route], prefilled: Prefill, max_new_tokens: int) -> RowStream | _Stream:
    if not isinstance(depth, Route | TokenDepth):
        return RowStream(model, depth, prefilled, max_new_tokens)
    if isinstance(depth, TokenDepth) or max_new_tokens < 2 or not in_rows(model):
        return _Stream(model, depth, prefilled)
    return RowStream(model, [depth] * prefilled.n_sequences, prefilled, max_new_tokens)


class _Stream:
    """The same through transformers' own cache, every row until the last is over: for what cannot be run in rows."""

    def __init__(self, model: Any, depth: Depth, prefilled: Prefill) -> None:
        self._running, self._cache = continuing(model, depth, prefilled)
        self._mask, self._logits = prefilled.attention_mask, prefilled.logits

    def last_logits(self) -> torch.Tensor:
        return self._logits[:, -1].to(torch.float32, copy=True)

    def step(self, tokens: torch.Tensor, is_over: torch.Tensor) -> None:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._logits = continue_on(self._running, self._cache, tokens[:, None], self._mask).logits
