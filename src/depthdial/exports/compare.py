"""What was written, loaded again as anyone would load it, and held against the model that it was made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.hf.facts import ModelFacts

_ROWS, _TOKENS = 2, 24
# A wrong order of rows or layers leaves a few per cent of the tokens; rounding to eight bits most of them.
_LEAST_AGREEMENT = 0.75
_TEXTS = ("Hello world, I'll say 1234 things.\n\nNaïve: «да», 你好!", "  two  spaces\tand a tab")


@dataclass(frozen=True)
class Comparison:
    """How close a file's logits are to the model's, on the same token ids.

    Attributes:
        tokens: how many were compared.
        is_equal: whether all logits are equal bit for bit.
        agreement: share of the tokens after which both predict the same one.
        largest_difference: of two logits.
    """

    tokens: int
    is_equal: bool
    agreement: float
    largest_difference: float

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Comparison:
        return cls(**record)

    def __str__(self) -> str:
        if self.is_equal:
            return f"logits equal bit for bit on {self.tokens} tokens"
        return (
            f"the same next token after {self.agreement:.1%} of {self.tokens} tokens, logits at most "
            f"{self.largest_difference:.2g} apart"
        )


def compare(model: Any, again: Any, tokenizer: Any, what: str, *, exact: bool) -> Comparison:
    """Compare two models of one vocabulary.

    Args:
        what: was loaded again, for the sentence of the error.
        exact: whether they are to be equal bit for bit.

    Raises:
        InputError: if they are not, or, of rounded weights, if they hardly agree.
    """
    ids = probe_ids(model, tokenizer)
    ours, theirs = _logits(model, ids), _logits(again, ids)
    if exact and not torch.equal(ours, theirs):
        # Kernels may round otherwise for weights that lie otherwise in memory, as those of a file do that is mapped into it.
        ours, theirs = (_logits(copy.deepcopy(one), ids) for one in (model, again))
    found = Comparison(
        tokens=ids.numel(),
        is_equal=torch.equal(ours, theirs),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
        largest_difference=float((ours.double() - theirs.double()).abs().max()),
    )
    if not found.is_equal and (exact or found.agreement < _LEAST_AGREEMENT):
        raise InputError(
            f"{what} computes something else than the model it was made of ({found}): please report this model."
        )
    return found


def probe_ids(model: Any, tokenizer: Any) -> torch.Tensor:
    """Token ids to compare on, (2, 24): the same ones for a model every time, without special tokens."""
    n_tokens = min(ModelFacts.of(model).vocabulary, len(tokenizer))
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    known = torch.tensor([i for i in range(n_tokens) if i not in special] or list(range(n_tokens)))
    chosen = torch.randint(len(known), (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return known[chosen]


def check_tokenizer(tokenizer: Any, again: Any, what: str) -> None:
    """InputError unless both tokenizers read the same text alike."""
    for text in _TEXTS:
        ours, theirs = tokenizer(text)["input_ids"], again(text)["input_ids"]
        if ours != theirs:
            raise InputError(f"{what} has a tokenizer that reads {text!r} otherwise: export with --to hf.")


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()
