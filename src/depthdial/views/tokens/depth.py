"""A token policy where a route would stand: what measurements and decoding take as the depth that a batch runs at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.tokens.cache import KeyValues
from depthdial.views.tokens.policy import TokenPolicy, sequence_key
from depthdial.views.tokens.view import TokenTrace, token_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenDepth:
    """A policy for a model of a given depth; takes a Route's place in `sweep`.

    Attributes:
        policy: which tokens run which layers.
        n_layers: L.
        key_values: what a token leaves in the cache of a layer that it skips.
        name: in rows and reports; default: the policy's.
        keys: of the sequences of a batch, for chance; None: their rows.
        trace: records what ran.

    Raises:
        InputError: for what is no policy, or one that is made for the rows of one batch.

    Example:
        >>> depth = dd.TokenDepth(dd.ConfidenceExit("margin", 0.5), n_layers=6)
        >>> rows = dd.sweep(model, tokenizer, task=task, routes=["full", depth], metrics=["agreement"])
    """

    policy: TokenPolicy
    n_layers: int
    key_values: KeyValues = "project"
    name: str = ""
    keys: tuple[int, ...] | None = field(default=None, compare=False)
    trace: TokenTrace | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, TokenPolicy):
            raise InputError(f"TokenDepth takes a token policy, not {self.policy!r}: see dd.TokenPolicy.")
        if self.policy.for_sequences([0]) is not self.policy:
            # Batches are cut, and their rows put in another order, as it suits whoever measures.
            raise InputError(
                f"The policy {self.policy.name!r} has one route per row and cannot be swept: pass its routes separately."
            )
        if not self.name:
            object.__setattr__(self, "name", f"{self.policy.name}:{self.key_values}")

    def __str__(self) -> str:
        # Rows of another policy by the same name must not be taken for this one's.
        return f"token-wise:{self.key_values}:{hashlib.sha256(self.policy.fingerprint.encode()).hexdigest()[:12]}"

    is_full = False

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the prompts that the policy was trained on."""
        return self.policy.trained_on

    def for_sequence(self, sequence_id: object) -> TokenDepth:
        """Itself: what differs between sequences differs between tokens already."""
        return self

    def for_batch(self, sequence_ids: Iterable[object]) -> TokenDepth:
        """The depth for a batch of these sequences, with a trace of its own."""
        return replace(self, keys=tuple(sequence_key(one) for one in sequence_ids), trace=TokenTrace())

    def of_rows(self, rows: Sequence[int]) -> TokenDepth:
        """The depth for some rows of the batch that it is for, with a trace of its own where it has one."""
        keys = tuple(rows) if self.keys is None else tuple(self.keys[i] for i in rows)
        return replace(self, keys=keys, trace=None if self.trace is None else TokenTrace())

    def mean_layers(self, n_tokens: Sequence[int]) -> list[float | None]:
        """Mean layers run by the first `n` traced tokens of each sequence; None without one."""
        if self.trace is None or not self.trace.passes:
            return [None] * len(n_tokens)
        counts = self.trace.layers_run()
        return [row[:n].double().mean().item() if n else None for row, n in zip(counts, n_tokens, strict=True)]

    def view(self, model: Any) -> PreTrainedModel:
        """A token view of the model."""
        return token_view(model, self.policy, key_values=self.key_values, keys=self.keys, trace=self.trace)


Depth = Route | TokenDepth
