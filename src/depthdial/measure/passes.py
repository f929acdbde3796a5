"""Passes of a model, timed: decoding steps, checks of drafted tokens, prompts, and transformers' own `generate` beside them.

Steps run through the one decode loop, so that what is measured is what is used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from depthdial.engine.batch import RowBatch, in_rows
from depthdial.engine.prefill import Prefill, clock_sec, continue_on, continuing
from depthdial.engine.session import Session
from depthdial.hf.architectures import unwrap
from depthdial.hf.quiet import quiet_transformers
from depthdial.measure.latency import step_stamps
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.view import quiet_view

_TEXT = (
    "The river rose in the night, and by morning the lower fields were a lake. Nobody had expected so much rain at the end "
    "of a dry summer; the old people said that it had last happened when they were children, and that the bridge had gone. "
)


def made_prompts(tokenizer: Any, vocabulary: int, rows: int, tokens: int, seed: int) -> list[list[int]]:
    """Prompts of exactly `tokens` tokens for a number of rows: words of one text, in an order that the seed decides."""
    words = [one for one in tokenizer.encode(_TEXT, add_special_tokens=False) if one < vocabulary] or [0]
    chance = random.Random(seed)
    return [chance.choices(words, k=tokens) for _ in range(rows)]


def step_secs(session: Session, route: Route, prefilled: Prefill, steps: int) -> list[float]:
    """Seconds of each of some decoding steps behind prefilled prompts."""
    return [b - a for a, b in pairwise(step_stamps(session.model, session, route, prefilled, steps))]


class Checks:
    """Passes over some tokens of each row behind prefilled prompts, as when drafts are checked; the prompts stay."""

    def __init__(self, session: Session, route: Route, prefilled: Prefill) -> None:
        self._session, self._route, self._prefilled = session, route, prefilled
        self._batch = None
        if in_rows(session.model):
            self._batch = RowBatch(session.model, prefilled.n_sequences)
            self._batch.join(prefilled, [route] * prefilled.n_sequences, range(prefilled.n_sequences))

    def sec(self, tokens: int) -> float:
        """Seconds of one pass, with the logits of all of its tokens."""
        device = self._session.device
        drafted = self._prefilled.input_ids[:, -tokens:]
        drafted = drafted.repeat(1, -(-tokens // drafted.shape[1]))[:, :tokens]
        with as_is(device):
            if self._batch is not None:
                started = clock_sec(device)
                self._batch.run(drafted)
                return clock_sec(device) - started
            running, cache = continuing(self._session.model, self._route, self._prefilled)
            mask = self._prefilled.attention_mask
            mask = torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)
            started = clock_sec(device)
            continue_on(running, cache, drafted, mask)
            return clock_sec(device) - started


class _Stamps:
    """A streamer that looks at the clock whenever a token comes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, [clock_sec(device)]

    def put(self, tokens: Any) -> None:
        self.seconds.append(clock_sec(self.device))

    def end(self) -> None:
        pass


def hf_secs(session: Session, prompts: Sequence[Sequence[int]], steps: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each of some steps, of transformers' `generate` on the model as it was given.

    Greedy, with its default cache; answers do not end.
    """
    model: Any = unwrap(session.given)
    if model.training:
        model = quiet_view(model, session.full).eval()
    ids = torch.tensor([list(prompt) for prompt in prompts], device=session.device)
    stamps = _Stamps(session.device)
    with as_is(session.device), quiet_transformers():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps + 1,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=session.facts.vocabulary,  # an id that no token has
            pad_token_id=session.pad_token_id,
            streamer=stamps,
        )
    start, _, *tokens = stamps.seconds  # the prompt is put too
    return tokens[0] - start, [b - a for a, b in pairwise(tokens)]
