"""The KV cache of token-wise execution: one slot a position in every layer, whether or not its token ran there.

So lengths, masks and batching stay those of an ordinary cache. What a token that skips a layer leaves in its slot is a named
choice:

- `project`: the key and value that the layer projects from its input, so that later tokens can attend to it: the paper's
  way (arXiv 2410.20022, section 3). Costs the layer's query, key and value projections for the skipped token too.
- `drop`: nothing; the slot is masked. Costs nothing.
- `copy`: the key and value of the last layer that the token ran, as Unified Layer Skipping does (arXiv 2404.06954). Costs a
  copy of memory; a token that has run no layer yet leaves a masked slot. Layers must have caches of one shape.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from depthdial.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

KeyValues = Literal["project", "drop", "copy"]
KEY_VALUES: tuple[KeyValues, ...] = get_args(KeyValues)
# Of keys and values, each (n_sequences, n_heads, n_slots, width).
Pair = tuple[torch.Tensor, torch.Tensor]

# Slots are added in strides, so that a decoding step writes in place where concatenation would copy the whole cache.
_SPARE_SLOTS = 32


class KeysWritten(Exception):  # noqa: N818 (no error: it ends a layer early)
    """Ends a layer once its keys and values are in the cache: what `project` needs of a layer that is skipped."""


@dataclass(frozen=True)
class Gathered:
    """Which tokens of a pass a layer is called with.

    Attributes:
        rows: (n_rows,) sequences that take part, or None for every token of the pass.
        columns: (n_rows, n_taken) their tokens' places in the pass, real ones first, then fillers.
        is_real: (n_rows, n_taken), false for fillers; None where there are none.
        kept: (n_sequences, n_tokens), where `rows` is None: tokens whose own keys and values are written; None for all.
        only_keys: end the layer as soon as keys and values are written.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    is_real: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    only_keys: bool = False

    def flat(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sequences, places in the pass, rows of `values` (n_rows, n_taken, ..)) of the taken tokens but the fillers."""
        assert self.rows is not None and self.columns is not None
        rows = self.rows[:, None].expand_as(self.columns)
        if self.is_real is None:
            return rows.flatten(), self.columns.flatten(), values.flatten(0, 1)
        return rows[self.is_real], self.columns[self.is_real], values[self.is_real]


class TokenCacheLayer(DynamicLayer):
    """Keys and values of one layer."""

    def __init__(self, layer: Any = None) -> None:
        super().__init__()
        self.n_slots = 0  # positions seen so far, whether or not their tokens left anything
        self.valid: torch.Tensor | None = None  # (n_sequences, n_slots), those that may be attended to; None where all may
        self.plan = Gathered()  # what the next `update` is about
        self._room: Pair | None = None
        self._block: Pair | None = None
        self._past: Pair | None = None
        self._source: TokenCacheLayer | None = None
        self._n_sequences = self._started = 0
        self._is_written = True
        if layer is not None and layer.get_seq_length() > 0:
            self._adopt(layer)

    def __copy__(self) -> TokenCacheLayer:
        other: Any = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._room = None  # two caches must not write into one room
        return other

    # One pass

    def begin(
        self,
        n_sequences: int,
        n_tokens: int,
        runs: torch.Tensor | None,
        key_values: KeyValues,
        source: TokenCacheLayer | None,
    ) -> None:
        """Open slots for the tokens of a pass.

        Args:
            runs: (n_sequences, n_tokens), those that run the layer; None for all.
            source: the layer before this one, already through the pass: what `copy` copies from.
        """
        self._n_sequences, self._started = n_sequences, self.n_slots
        self.n_slots += n_tokens
        self.expect(Gathered())
        self._block, self._past = None, None
        is_copied = key_values == "copy" and runs is not None and source is not None
        self._source = source if is_copied else None
        self._mark(n_tokens, runs if key_values != "project" else None, self._source)

    def expect(self, plan: Gathered) -> None:
        """Say which tokens the next call of the layer is for."""
        self.plan, self._is_written = plan, False

    def _mark(self, n_tokens: int, filled: torch.Tensor | None, source: TokenCacheLayer | None) -> None:
        if filled is not None and source is not None:
            filled = None if source.valid is None else filled | source.valid[:, self._started :]
        if self.valid is None:
            if filled is None or bool(filled.all()):
                return
            self.valid = torch.ones(filled.shape[0], self._started, dtype=torch.bool, device=filled.device)
        new = self.valid.new_ones(self.valid.shape[0], n_tokens) if filled is None else filled
        self.valid = torch.cat([self.valid, new], dim=1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values of the planned tokens, (n_rows, n_heads, n_taken, width); those of all slots of their rows.

        Raises:
            KeysWritten: where the plan is for the keys alone.
        """
        plan = self.plan
        write = self._write_apart if torch.is_grad_enabled() else self._write_in_place
        write(key_states, value_states, plan)
        self._is_written = True
        if plan.only_keys:
            raise KeysWritten
        keys, values = self._joined()
        if plan.rows is None:
            return keys, values
        return keys.index_select(0, plan.rows), values.index_select(0, plan.rows)

    def finish(self) -> None:
        """Close the pass: every slot of it exists from now on, also where no token ran."""
        if self._block is None and (self.is_initialized or self.copies):
            self._write_nothing()
        if self._block is not None:
            self.keys, self.values = self._joined()
        self._block = self._past = self._source = None
        self._is_written = True

    @property
    def copies(self) -> bool:
        """Whether slots of this pass start as copies of the layer before."""
        return self._source is not None and self._source.is_initialized

    def _joined(self) -> Pair:
        assert self._block is not None
        if self._past is None:
            return self._block
        keys, values = (torch.cat(parts, dim=-2) for parts in zip(self._past, self._block, strict=True))
        return keys, values

    # Without gradients: into spare room

    def _write_in_place(self, keys: torch.Tensor, values: torch.Tensor, plan: Gathered) -> None:
        if self._block is None:
            self._make_room(keys, values)
        assert self._room is not None
        for room, new in zip(self._room, (keys, values), strict=True):
            _put(room, new, plan, self._started, self.n_slots)

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        # Whoever changed the tensors from outside (crop, selecting rows) left the room behind.
        has_room = self._room is not None and self._room[0].shape[2] >= self.n_slots and self._is_ours()
        if not has_room:
            room = self._empty(keys, values, self.n_slots + _SPARE_SLOTS)
            if self._held is not None and self._held[0].numel():
                for new, old in zip(room, self._held, strict=True):
                    new[:, :, : old.shape[2]] = old
            self._room = room
        assert self._room is not None
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._block = self._room[0][:, :, : self.n_slots], self._room[1][:, :, : self.n_slots]
        if self.copies:
            for room, copied in zip(self._room, self._copied(keys), strict=True):
                room[:, :, self._started : self.n_slots] = copied

    def _is_ours(self) -> bool:
        assert self._room is not None
        if self._room[0].is_inference() and not torch.is_inference_mode_enabled():
            return False  # made in inference mode, and not to be written to outside it
        return self.keys is not None and self.keys.data_ptr() == self._room[0].data_ptr()

    # With gradients: a block of its own, joined to what came before

    def _write_apart(self, keys: torch.Tensor, values: torch.Tensor, plan: Gathered) -> None:
        if self._block is None:
            self._open_block(keys, values)
        assert self._block is not None
        self._block = _put_apart(self._block[0], keys, plan), _put_apart(self._block[1], values, plan)

    def _open_block(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self._started:
            self._past = self._held or self._empty(keys, values, self._started)
        self.dtype, self.device, self.is_initialized, self._room = keys.dtype, keys.device, True, None
        n_new = self.n_slots - self._started
        self._block = self._copied(keys) if self.copies else self._empty(keys, values, n_new)

    # Either way

    @property
    def _held(self) -> Pair | None:
        if not self.is_initialized or self.keys is None or self.values is None:
            return None
        return self.keys, self.values

    def _empty(self, keys: torch.Tensor, values: torch.Tensor, n_slots: int) -> Pair:
        """Zeros for `n_slots` slots of every sequence, of the dtype and device of some keys and values."""
        n = self._n_sequences
        keys, values = (like.new_zeros(n, like.shape[1], n_slots, like.shape[3]) for like in (keys, values))
        return keys, values

    def _write_nothing(self) -> None:
        like = self._source if self.copies else self
        assert like is not None and like._held is not None
        open_slots = self._open_block if torch.is_grad_enabled() else self._make_room
        open_slots(*like._held)

    def _copied(self, keys: torch.Tensor) -> Pair:
        assert self._source is not None and self._source._held is not None
        copied, values = self._source._held
        if copied.shape[1::2] != keys.shape[1::2]:
            raise InputError(
                "Two layers of this model have KV caches of different shapes, so one's keys cannot be copied to the other: "
                "use key_values='project' or 'drop'."
            )
        return copied[:, :, self._started :], values[:, :, self._started :]

    # What an ordinary cache layer does

    def get_seq_length(self) -> int:
        # As in an ordinary cache: a layer that asks before it has written its tokens learns where they start.
        return self.n_slots if self._is_written else self._started

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_slots + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        keep = tokens_to_remove if tokens_to_remove > 0 else self.n_slots + tokens_to_remove
        self.n_slots = max(0, min(self.n_slots, keep))
        self._room = None
        if self._held is not None:
            self.keys, self.values = (held[:, :, : self.n_slots] for held in self._held)
        if self.valid is not None:
            self.valid = self.valid[:, : self.n_slots]

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:  # a layer that nobody ran has slots, and no tensors
            super().batch_repeat_interleave(repeats)
        self._room = None
        self.valid = None if self.valid is None else self.valid.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            super().batch_select_indices(indices)
        self._room = None
        self.valid = None if self.valid is None else self.valid[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise InputError(
            "Beam search is not supported with token routing, since a policy follows a sequence and not a beam: use greedy "
            "decoding or sampling (num_beams=1)."
        )

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized, self._is_written = False, True
        self.n_slots, self.valid, self._room = 0, None, None

    def _adopt(self, layer: Any) -> None:
        """Take over what an ordinary layer holds; its tensors are not written to."""
        keys, values, self.n_slots = layer.keys, layer.values, layer.get_seq_length()
        missing = self.n_slots - keys.shape[2]
        if missing:  # a sliding window has let go of what no later token sees
            keys, values = (torch.nn.functional.pad(t, (0, 0, missing, 0)) for t in (keys, values))
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        if isinstance(layer, TokenCacheLayer):
            self.valid = layer.valid


def token_cache(n_layers: int, cache: Any = None) -> DynamicCache:
    """A cache for token-wise execution: empty, or with what `cache` holds, which stays as it is."""
    made: Any = DynamicCache()
    made.layers = token_layers(n_layers, () if cache is None else cache.layers)
    made.layer_class_to_replicate = None
    return made


def token_layers(n_layers: int, layers: Sequence[Any]) -> list[TokenCacheLayer]:
    """One TokenCacheLayer for each layer, with what ordinary ones hold."""
    taken = [copy.copy(layer) if isinstance(layer, TokenCacheLayer) else TokenCacheLayer(layer) for layer in layers]
    return taken or [TokenCacheLayer() for _ in range(n_layers)]


def _put(room: torch.Tensor, new: torch.Tensor, plan: Gathered, started: int, ended: int) -> None:
    if plan.rows is None:
        here = room[:, :, started:ended]
        here.copy_(new if plan.kept is None else torch.where(plan.kept[:, None, :, None], new, here))
    elif ended - started == 1 and plan.is_real is None:
        room[:, :, started][plan.rows] = new[:, :, 0]
    else:
        rows, columns, flat = plan.flat(new.transpose(1, 2))
        room[rows, :, columns + started] = flat


def _put_apart(block: torch.Tensor, new: torch.Tensor, plan: Gathered) -> torch.Tensor:
    if plan.rows is None:
        return new if plan.kept is None else torch.where(plan.kept[:, None, :, None], new, block)
    rows, columns, flat = plan.flat(new.transpose(1, 2))
    return block.transpose(1, 2).index_put((rows, columns), flat).transpose(1, 2)
