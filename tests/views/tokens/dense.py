"""The yardstick of token routing: a stock model that computes every layer for every token, and then masks.

Not a test. It runs one sequence at a time, whole, without padding, and shares no line with the package: a deep copy of the
model whose layers are wrapped. Beside it, policies that are written down as tables, and batches of unequal lengths.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.views.tokens.policy import Decide, TokenPolicy, TokenStep

VOCAB = 96
N_LAYERS = 6
# The six, in every test; of the others each is tested once.
MAIN = ("llama", "opt", "gpt2", "gpt_neox", "qwen3", "gemma2")
KEY_VALUES = ("project", "drop", "copy")
ONLY_EAGER = frozenset({"gemma2", "gpt_neo", "gpt_oss", "gptj", "bloom", "mpt"})
REFUSED = {"gpt_neo": "masks by a token's place"}
NO_COPY = {"gemma4_unified_text"}  # heads of two sizes
LENGTHS = (12, 9, 11, 7, 12)  # tokens of the sequences of a batch: all longer than the window of `tiny`


class Dense:
    """Every layer for every token, masked: what token routing must equal.

    Args:
        model: stock; it is copied.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        self.is_inverted = model.config.model_type == "mpt"  # its boolean masks are true where a slot is hidden
        self._ran = self._weights = torch.empty(0)
        self._key_values = ""
        (stack,) = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == _depth(model)]
        for index, layer in enumerate(stack):
            layer.forward = functools.wraps(layer.forward)(functools.partial(self._layer, index, layer.forward))

    def __call__(self, ids: torch.Tensor, ran: torch.Tensor, key_values: str = "project", **inputs: Any) -> Any:
        """The model's output for one sequence (n_tokens,), of which `ran` (n_tokens, L) says what runs.

        Args:
            ran: bool, or floats of 0 and 1 that a gradient goes to.
            inputs: `inputs_embeds` (1, n_tokens, width) in the ids' place, labels, output_hidden_states.
        """
        self._weights, self._ran, self._key_values = ran, ran > 0.5, key_values
        tokens: dict[str, Any] = {} if "inputs_embeds" in inputs else {"input_ids": ids[None]}
        cache: dict[str, Any] = {"use_cache": False}
        if key_values == "copy":
            cache = {"use_cache": True, cache_name(): CopyCache(self._ran)}
        mask = torch.ones(1, len(ran), dtype=torch.long)
        return self.model(**tokens, attention_mask=mask, **cache, **inputs)

    def greedy(self, prompt: torch.Tensor, ran: torch.Tensor, key_values: str, n_new: int) -> list[int]:
        """`n_new` tokens behind a prompt, the likeliest each time, everything computed anew for each."""
        ids = prompt
        with torch.no_grad():
            for _ in range(n_new):
                logits = self(ids, ran[: len(ids)], key_values).logits[0, -1]
                ids = torch.cat([ids, logits.argmax()[None]])
        return ids[len(prompt) :].tolist()

    def _layer(self, index: int, stock: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(stock).bind(*args, **kwargs)
        given = bound.arguments
        hidden = next(iter(given.values()))
        where = given if "attention_mask" in given else given.setdefault("kwargs", {})
        present = self._present(index)
        if present is not None:
            where["attention_mask"] = self._hidden_from_all(where.get("attention_mask"), present)
        output = stock(*bound.args, **bound.kwargs)
        out = output[0] if isinstance(output, tuple) else output
        weight = self._weights[None, :, index, None]
        is_mixed = weight.is_floating_point()
        kept = weight * out + (1 - weight) * hidden if is_mixed else torch.where(weight, out, hidden)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def _present(self, index: int) -> torch.Tensor | None:
        """(n_tokens,), the slots of a layer that hold anything; None if all do."""
        if self._key_values == "drop":
            return self._ran[:, index]
        return self._ran[:, : index + 1].any(1) if self._key_values == "copy" else None

    def _hidden_from_all(self, mask: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor:
        n = len(present)
        # A token that skips sees itself: what it would have seen is not kept, and seeing nothing is NaN.
        sees = present[None, :] | torch.eye(n, dtype=torch.bool)
        if mask is None:  # sdpa's own causal mask
            return (sees & torch.ones(n, n, dtype=torch.bool).tril())[None, None]
        if mask.dtype == torch.bool:
            return mask | ~sees if self.is_inverted else mask & sees
        return mask.masked_fill(~sees, torch.finfo(mask.dtype).min)


class CopyCache(DynamicCache):
    """Gives a token that skips a layer the keys and values that it had one layer before; for one pass without a past."""

    def __init__(self, ran: torch.Tensor) -> None:
        super().__init__()
        self._ran = ran
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        now = (key_states, value_states)
        if self._before is not None:
            own = self._ran[None, None, :, layer_idx, None]
            now = (torch.where(own, now[0], self._before[0]), torch.where(own, now[1], self._before[1]))
        self._before = now
        return now

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class Table(TokenPolicy):
    """What runs, written down: (n_sequences, n_positions, L), by a sequence's key and a token's place in it."""

    name = "table"

    def __init__(self, ran: torch.Tensor) -> None:
        self.ran = ran

    def start(self, step: TokenStep) -> Decide:
        ran = self.ran[step.keys[:, None], step.positions]
        return lambda layer, hidden: ran[..., layer]


@dataclass(frozen=True)
class Batch:
    """Sequences of unequal lengths, padded on the left: (n_sequences, n_tokens)."""

    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def rows(self, values: torch.Tensor | None = None) -> list[torch.Tensor]:
        """What belongs to each sequence's own tokens, without padding."""
        values = self.ids if values is None else values
        return [row[real] for row, real in zip(values, self.mask.bool(), strict=True)]

    def inputs(self, model: nn.Module, first: int = 0, last: int | None = None) -> dict[str, torch.Tensor]:
        """What a forward of some columns is called with; the mask is of all columns so far."""
        columns = slice(first, last)
        given = {"input_ids": self.ids[:, columns], "attention_mask": self.mask[:, :last]}
        if "position_ids" in inspect.signature(type(model).forward).parameters:
            given["position_ids"] = self.positions[:, columns]
        return given


def batch(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> Batch:
    n_tokens = max(lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), n_tokens), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(n_tokens) >= n_tokens - torch.tensor(lengths)[:, None]).long()
    return Batch(ids.masked_fill(mask == 0, 0), mask)


def drawn(n_sequences: int = len(LENGTHS), n_tokens: int = max(LENGTHS), rate: float = 0.5, seed: int = 2) -> torch.Tensor:
    """A table of half of all layers, at random: (n_sequences, n_tokens, L)."""
    chance = torch.rand(n_sequences, n_tokens, N_LAYERS, generator=torch.Generator().manual_seed(seed))
    return chance < rate


def in_chunks(model: Any, given: Batch, ends: Sequence[int], cache: Any = None, first: int = 0) -> torch.Tensor:
    """Logits (n_sequences, n_tokens, vocabulary) of a batch in passes that end at these columns, behind one cache."""
    logits = []
    for last in ends:
        output = model(**given.inputs(model, first, last), **{cache_name(): cache}, use_cache=True)
        logits.append(output.logits)
        cache, first = cache_of(output), last
    return torch.cat(logits, dim=1)


def error(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest difference, relative to the largest number; NaN counts as infinite."""
    assert len(ours) == len(theirs)
    largest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    result = largest / max(float(b.abs().max()) for b in theirs)
    finite = all(bool(torch.isfinite(a).all()) for a in ours)
    return result if finite else float("inf")


def _depth(model: PreTrainedModel) -> int:
    return model.config.get_text_config(decoder=True).num_hidden_layers
