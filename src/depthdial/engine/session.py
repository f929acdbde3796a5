"""Batches of encoded sequences behind their prompts, and the full model's own answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.decode import Decoded, decode, joined
from depthdial.engine.prefill import Prefill, PrefillInParts, left_padded, prefill
from depthdial.engine.sampling import GREEDY, DecodingPolicy
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.attention import check_attention
from depthdial.hf.ends import eos_ids
from depthdial.hf.facts import ModelFacts
from depthdial.hf.untouched import has_adapters_on
from depthdial.routes import Route
from depthdial.views.packed import pack_linears
from depthdial.views.snapshot import as_is, snapshot
from depthdial.views.tokens.depth import Depth, TokenDepth
from depthdial.views.view import quiet_view, remember_views

T = TypeVar("T")

# How many tokens of the full model's own greedy answer KL and agreement are taken on where nothing else is asked for.
FIDELITY_TOKENS = 128


@dataclass(frozen=True)
class Session:
    """A model with what is needed to run prompts through it.

    Attributes:
        given: the model as the caller has it, for its name, card and weights; nothing is run on it.
        model: what runs: a view of all its layers in evaluation mode (see `snapshot`).
        eos_token_ids, pad_token_id: how answers end and batches are padded.
        chunk_tokens: most columns of a prompt's pass, where memory asks for that.
        pack: whether linear layers run on packed copies of their weights, on a CPU (see `pack_linears`).
    """

    given: Any
    model: Any
    n_layers: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    chunk_tokens: int | None = None
    pack: bool = True

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, pack: bool = True) -> Session:
        """A session of a model with the weights that it has now.

        Raises:
            InputError: for an implementation of attention that cannot run batches of rows.
        """
        check_attention(unwrap(model))
        ends = eos_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*ends, 0)[0]
        return cls(model, _private(model, pack), count_layers(model), ends, pad, pack=pack)

    def __post_init__(self) -> None:
        if not self.rotates_by_length:  # a view that has run keeps frequencies, which the next pass would start from
            remember_views(self.model)

    def beside(self, model: Any) -> Session:
        """The same on a model that stands beside this one: of the same layers, under a wrapper or with an adapter."""
        return replace(self, given=model, model=_private(model, self.pack))

    @cached_property
    def facts(self) -> ModelFacts:
        return ModelFacts.of(self.model)

    @cached_property
    def untouched(self) -> Session:
        """The same without the model's adapters: this session itself where none is on.

        Raises:
            InputError: if they cannot be switched off exactly.
        """
        if not has_adapters_on(self.model):
            return self
        return replace(self, model=snapshot(self.model, adapters=False))

    @property
    def device(self) -> torch.device:
        return next(unwrap(self.model).get_input_embeddings().parameters()).device

    @property
    def full(self) -> Route:
        return Route(tuple(range(self.n_layers)), self.n_layers, "full")

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that the model was made for; None if its configuration does not say."""
        return self.facts.context

    @cached_property
    def rotates_by_length(self) -> bool:
        """Whether rotary frequencies follow the longest sequence of a batch (dynamic NTK, LongRoPE)."""
        return not self.facts.rope.isdisjoint({"dynamic", "longrope"})

    def batches(self, examples: Sequence[T], batch_size: int) -> list[Sequence[T]]:
        """Examples, or their places, in batches of at most `batch_size`; of one where neighbours would decide about a
        sequence's rotary frequencies.
        """
        return list(batched(examples, 1 if self.rotates_by_length else batch_size))

    def prefill(self, batch: Sequence[EncodedExample], route: Route | None = None) -> Prefill:
        """One pass over the prompts of a batch, through `route` (default: every layer)."""
        return self.prefill_ids([example.prompt_ids for example in batch], route)

    def prefill_ids(
        self, prompts: Sequence[Sequence[int]], route: Route | None = None, watch: Sequence[int] = ()
    ) -> Prefill:
        with as_is(self.device):
            ids, mask = left_padded(prompts, self.pad_token_id, self.device)
            # A fresh view where a pass leaves its frequencies behind, which the next would start from.
            model = quiet_view(self.model, self.full) if self.rotates_by_length else self.model
            return prefill(model, ids, mask, route, watch=watch, chunk_tokens=self.chunk_tokens)

    def prefill_in_parts(
        self, prompts: Sequence[Sequence[int]], route: Route | None = None, watch: Sequence[int] = ()
    ) -> PrefillInParts:
        """A pass over prompts that is yet to be made, part by part."""
        with as_is(self.device):
            ids, mask = left_padded(prompts, self.pad_token_id, self.device)
            model = quiet_view(self.model, self.full) if self.rotates_by_length else self.model
            return PrefillInParts(model, ids, mask, route, watch)

    def rooms(self, prefilled: Prefill, max_new_tokens: int) -> list[int]:
        """How long each answer of a batch may be: at most what its own prompt leaves of the context.

        Learned positions (GPT-2, OPT) end there, and rotary ones were never trained beyond it.
        """
        if self.context_tokens is None:
            return [max_new_tokens] * prefilled.n_sequences
        return [min(max_new_tokens, self.context_tokens - n) for n in prefilled.attention_mask.sum(1).tolist()]

    def in_rooms(self, prefilled: Prefill, max_new_tokens: int) -> dict[int, list[int]]:
        """Rows of a batch by the room that each has: what may be decoded together.

        A batch goes on until its last answer ends, so a row with less room would be run beyond the context, or the others
        be cut short. All rows that have room enough are one group.
        """
        groups: dict[int, list[int]] = {}
        for row, room in enumerate(self.rooms(prefilled, max_new_tokens)):
            groups.setdefault(room, []).append(row)
        return groups

    def decode(
        self,
        route: Depth,
        prefilled: Prefill,
        max_new_tokens: int,
        policy: DecodingPolicy = GREEDY,
        draws: torch.Tensor | None = None,
    ) -> Decoded:
        """Answers of a prefilled batch on a route, greedy or drawn, each within the room that its prompt leaves."""
        groups = self.in_rooms(prefilled, max_new_tokens)
        parts = []
        for room, rows in groups.items():
            depth = route.of_rows(rows) if isinstance(route, TokenDepth) and len(groups) > 1 else route
            places = torch.tensor(rows, device=prefilled.input_ids.device)
            one = decode(
                self.model,
                depth,
                prefilled.select(places),
                max_new_tokens=room,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self.pad_token_id,
                policy=policy,
                draws=None if draws is None else draws[places.cpu()],
            )
            parts.append((rows, one))
        return joined(parts)


def _private(model: Any, pack: bool) -> Any:
    private = snapshot(model)
    if pack:
        pack_linears(private)
    return private


Runner = Session  # what it was called before


def batched(examples: Sequence[T], batch_size: int) -> Iterator[Sequence[T]]:
    """Consecutive batches, in order, so that a larger limit only adds batches."""
    for start in range(0, len(examples), batch_size):
        yield examples[start : start + batch_size]
