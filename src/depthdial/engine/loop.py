"""The one decode loop: a prompt's pass, then step after step, until every answer of the batch is over.

Sweeps, searches, controllers, benchmarks and `generate` all run it, so that what is measured is what is used. The layers are
transformers' own; each step is one forward pass of one token a row, on the cache of the layers that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from depthdial.engine.batch import RowBatch, in_rows
from depthdial.engine.prefill import Prefill, continue_on, continuing
from depthdial.engine.sampler import Sampler
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
        given, other = logits.log_softmax(-1), unconditional.log_softmax(-1)
        return self.scale * (given - other) + other


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
) -> list[list[int]]:
    """Continue prefilled prompts at a depth; the first token comes out of the prompt's pass.

    Args:
        model: in evaluation mode.
        depth: of all rows, or a route for each (of a model that is decoded in rows, see `in_rows`).
        sampler: of this batch, and used up by it.
        on_tokens: told the (n_sequences,) tokens of each step as they come.

    Returns:
        The tokens of each row, as many of each as the longest answer has; `sampler.answer` has a row's own.
    """
    with as_is(prefilled.input_ids.device):
        streams = [_stream(model, depth, prefilled, max_new_tokens)]
        if guidance is not None:
            untraced = replace(depth, trace=None) if isinstance(depth, TokenDepth) else depth
            streams.append(_stream(model, untraced, guidance.unconditional, max_new_tokens))
        ids = prefilled.input_ids
        width = ids.shape[1]
        is_over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            logits = streams[0].last_logits()
            if guidance is not None:
                logits = guidance.applied(logits, streams[1].last_logits())
            tokens = sampler.next_tokens(logits).masked_fill(is_over, pad_token_id)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            if on_tokens is not None:
                on_tokens(tokens)
            is_over = torch.tensor(sampler.ended(tokens), device=ids.device)
            if ids.shape[1] - width >= max_new_tokens or bool(is_over.all()):
                return ids[:, width:].tolist()
            for stream in streams:
                stream.step(tokens, is_over)


def _stream(model: Any, depth: Depth | Sequence[Route], prefilled: Prefill, max_new_tokens: int) -> _Rows | _Stream:
    if not isinstance(depth, Route | TokenDepth):
        return _Rows(model, depth, prefilled, max_new_tokens)
    if isinstance(depth, TokenDepth) or max_new_tokens < 2 or not in_rows(model):
        return _Stream(model, depth, prefilled)
    return _Rows(model, [depth] * prefilled.n_sequences, prefilled, max_new_tokens)


class _Rows:
    """A batch of answers in the making, of which rows that are over are run no longer; and the logits of the last step."""

    def __init__(self, model: Any, routes: Sequence[Route], prefilled: Prefill, max_new_tokens: int) -> None:
        self._batch = RowBatch(model, len(routes))
        self._batch.join(prefilled, routes, keys=range(len(routes)), new_tokens=max_new_tokens - 1)
        self._logits = prefilled.logits[:, -1].to(torch.float32, copy=True)  # a prefill may be decoded several times

    def last_logits(self) -> torch.Tensor:
        return self._logits.clone()

    def step(self, tokens: torch.Tensor, is_over: torch.Tensor) -> None:
        over = is_over.tolist()
        self._batch.leave([row for row in self._batch.keys if over[row]])
        rows = list(self._batch.keys)
        if rows == list(range(len(over))):
            self._logits = self._batch.step(tokens).float()
        else:  # those of rows that are over stay what they were, for nobody to read
            self._logits[rows] = self._batch.step(tokens[rows]).float()


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
