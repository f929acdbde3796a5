"""The full model that routes are compared with, and what it said: made once for a batch of prompts, and found again.

Where a model has adapters, the reference is the model without them: its own pass over the prompts, its own greedy answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.decode import Decoded, DecodedPart
from depthdial.engine.prefill import Prefill
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.hf.facts import ModelFacts
from depthdial.rows.store import UnitStore, unit_name

KEPT_BYTES = 2**30  # of prompts, between the steps of a study
_Prompts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Reference:
    """A full model with what it has said. Give one to several sweeps, similarities and searches, and they share it.

    Attributes:
        session: the model as it is; what is said is said without its adapters.
        keep_bytes: of prompts' keys and values that are kept for the next caller; the first batches win. Answers are small,
            and are all kept.
    """

    session: Session
    keep_bytes: int = 0
    _passes: dict[_Prompts, Prefill] = field(default_factory=dict, init=False, repr=False)
    _answers: dict[tuple[_Prompts, int], Decoded] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, known: Reference | None = None, *, keep_bytes: int = 0) -> Reference:
        """`known`, or a new one for a model."""
        return cls(Session.of(model, tokenizer), keep_bytes) if known is None else known

    @property
    def untouched(self) -> Session:
        """The model without its adapters."""
        return self.session.untouched

    def session_of(self, model: Any, tokenizer: Any) -> Session:
        """What a model runs on: the reference's own session, where it is of that model."""
        return self.session if self.session.given is model else Session.of(model, tokenizer)

    def prefill(self, batch: Sequence[EncodedExample], watch: Sequence[int] = ()) -> Prefill:
        """The pass over a batch's prompts.

        Args:
            watch: layers after which hidden states are pooled on the way.
        """
        found = self._passes.get(_prompts(batch))
        if found is None or (watch and (found.pooled is None or found.pooled.layers != tuple(watch))):
            found = self.untouched.prefill_ids(_prompts(batch), watch=watch) if watch else self.untouched.prefill(batch)
            if sum(map(_n_bytes, self._passes.values())) + _n_bytes(found) <= self.keep_bytes:
                self._passes[_prompts(batch)] = found
        return found

    def answers(
        self,
        batch: Sequence[EncodedExample],
        prefilled: Prefill,
        n_tokens: int,
        store: UnitStore | None = None,
        *,
        longer: int = 0,
    ) -> Decoded:
        """Greedy answers of at most `n_tokens` tokens; of a run that was stopped those that it has left in the store.

        Args:
            prefilled: from `prefill`.
            longer: answers of so many tokens do as well, where there are any: they begin alike.
        """
        for length in (n_tokens, longer) if longer > n_tokens else (n_tokens,):
            path = None if store is None else store.note(_note(batch, length))
            found = self._answers.get((_prompts(batch), length))
            if found is None and path is not None and path.exists():
                found = _restored(read_json(path, "answers"))
            if found is not None and (length == n_tokens or not found.parts):
                return _beginning(found, n_tokens)
        answers = self._answers[_prompts(batch), n_tokens] = self.untouched.decode(self.untouched.full, prefilled, n_tokens)
        path = None if store is None else store.note(_note(batch, n_tokens))
        if path is not None:
            write_json(path, asdict(answers))
        return answers


def check_reference(model: Any, reference: Any) -> None:
    """InputError unless both models predict the same tokens."""
    own, other = (ModelFacts.of(one).vocabulary for one in (model, reference))
    if own != other:
        raise InputError(f"The reference model knows {other} tokens and this one {own}: compare models of one vocabulary.")


def _prompts(batch: Sequence[EncodedExample]) -> _Prompts:
    return tuple(example.prompt_ids for example in batch)


def _note(batch: Sequence[EncodedExample], n_tokens: int) -> str:
    return unit_name([example.id for example in batch], f"answers of the full model, {n_tokens} tokens")


def _beginning(answers: Decoded, n_tokens: int) -> Decoded:
    """The same answers as if no more than `n_tokens` had been decoded."""
    if all(len(tokens) <= n_tokens for tokens in answers.tokens):
        return answers
    reasons = zip(answers.tokens, answers.finish_reasons, strict=True)
    return replace(
        answers,
        tokens=tuple(tokens[:n_tokens] for tokens in answers.tokens),
        finish_reasons=tuple("length" if len(tokens) > n_tokens else reason for tokens, reason in reasons),
    )


def _n_bytes(prefilled: Prefill) -> int:
    held = [getattr(layer, name, None) for layer in prefilled.cache.layers for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.element_size() for tensor in held if isinstance(tensor, torch.Tensor))


def _restored(kept: dict[str, Any]) -> Decoded:
    parts = tuple(DecodedPart(tuple(one["rows"]), one["decode_sec"], one["steps"]) for one in kept.get("parts", ()))
    tokens = tuple(map(tuple, kept["tokens"]))
    return Decoded(tokens, tuple(kept["finish_reasons"]), kept["decode_sec"], kept["steps"], parts=parts)
