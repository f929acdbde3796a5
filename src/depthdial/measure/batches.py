"""Batches of encoded sequences behind their prompts, and the full model's own answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.measure.tasks import EncodedExample
from depthdial.models.architectures import count_layers, unwrap
from depthdial.models.decode import GREEDY, Decoded, DecodingPolicy, decode, eos_ids
from depthdial.models.prompt import Prefill, left_padded, prefill
from depthdial.models.token_depth import Depth
from depthdial.routes import Route

# KL and agreement are taken on at most this many tokens of the full model's own greedy answer.
MAX_FIDELITY_TOKENS = 128


@dataclass(frozen=True)
class Runner:
    """A model with what is needed to run prompts through it.

    Attributes:
        model: the base model, untouched.
        eos_token_ids, pad_token_id: how answers end and batches are padded.
    """

    model: Any
    n_layers: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Runner:
        ends = eos_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*ends, 0)[0]
        return cls(model, count_layers(model), ends, pad)

    @property
    def device(self) -> torch.device:
        return next(unwrap(self.model).get_input_embeddings().parameters()).device

    @property
    def full(self) -> Route:
        return Route(tuple(range(self.n_layers)), self.n_layers, "full")

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that the model was made for; None if its configuration does not say."""
        config = unwrap(self.model).config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def prefill(self, batch: Sequence[EncodedExample], route: Route | None = None) -> Prefill:
        """One pass over the prompts of a batch, through `route` (default: every layer)."""
        return self.prefill_ids([example.prompt_ids for example in batch], route)

    def prefill_ids(
        self, prompts: Sequence[Sequence[int]], route: Route | None = None, watch: Sequence[int] = ()
    ) -> Prefill:
        ids, mask = left_padded(prompts, self.pad_token_id, self.device)
        return prefill(self.model, ids, mask, route, watch=watch)

    def room_tokens(self, prefilled: Prefill, max_new_tokens: int) -> int:
        """How long answers to a batch may be: at most what its longest prompt leaves of the context.

        Learned positions (GPT-2, OPT) end there, and rotary ones were never trained beyond it.
        """
        longest = int(prefilled.attention_mask.sum(1).max())
        return max_new_tokens if self.context_tokens is None else min(max_new_tokens, self.context_tokens - longest)

    def decode(
        self,
        route: Depth,
        prefilled: Prefill,
        max_new_tokens: int,
        policy: DecodingPolicy = GREEDY,
        draws: torch.Tensor | None = None,
    ) -> Decoded:
        """Answers of a prefilled batch on a route, greedy or drawn, within the model's context."""
        return decode(
            self.model,
            route,
            prefilled,
            max_new_tokens=self.room_tokens(prefilled, max_new_tokens),
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            policy=policy,
            draws=draws,
        )


def batched(examples: Sequence[EncodedExample], batch_size: int) -> Iterator[Sequence[EncodedExample]]:
    """Consecutive batches, in order, so that a larger limit only adds batches."""
    for start in range(0, len(examples), batch_size):
        yield examples[start : start + batch_size]
