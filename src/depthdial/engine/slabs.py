"""Keys and values of the layers that run: one slab a layer, rows left-aligned, a length for each row.

transformers' static cache has one length for a whole batch and one window for all; rows of unlike length, that join and
leave and whose last tokens may be taken back, need a length each. A token is written at its row's length, and what lies
behind that is never attended, so a row is rolled back by making its length smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

WINDOW_TOKENS = 64  # slabs have room for multiples of this
ATTENDED_TOKENS = 16  # and of them multiples of this are attended


class LayerCache:
    """What a decoder layer of transformers sees as its KV cache: the slab of this one layer.

    Args:
        keys, values: (n_rows, n_kv_heads, window, width of a head), written in place.
        positions: (n_rows, n_tokens) slots of the tokens of this pass.
        places: see `flat_places`, computed here if it is not given; a pass has the same for all its layers.
        attended_tokens: only the first slots are given back, as many; None for the whole window.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor | None = None,
        attended_tokens: int | None = None,
    ) -> None:
        self._keys, self._values, self._positions, self._places = keys, values, positions, places
        self._attended = attended_tokens

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write what a pass computed, (n_rows, n_kv_heads, n_tokens, width of a head); all keys and values of its rows."""
        places = flat_places(self._positions, self._keys) if self._places is None else self._places
        for slab, new in ((self._keys, keys), (self._values, values)):
            slab.view(-1, slab.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))
        if self._attended is None:
            return self._keys, self._values
        return self._keys[:, :, : self._attended], self._values[:, :, : self._attended]


def flat_places(positions: torch.Tensor, slab: torch.Tensor) -> torch.Tensor:
    """Where the tokens of a pass lie in a slab seen as a list of vectors: (n_rows * n_kv_heads * n_tokens,)."""
    n_rows, n_heads, window, _ = slab.shape
    starts = torch.arange(n_rows * n_heads, device=slab.device).view(n_rows, n_heads, 1) * window
    return (starts + positions[:, None, :]).reshape(-1)


class Slab:
    """Keys and values of one layer for the rows that run it.

    Attributes:
        members: the row of the batch that each row of the slab belongs to.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity_rows: int, window_tokens: int) -> None:
        """An empty slab; `keys` and `values`, of four dimensions, give heads, widths, type and device."""
        self.members: list[int] = []
        self._n_used = 0  # the rest of the rows has never been written
        # Zeros: a slot that is masked has no weight, but what it holds is multiplied by that all the same.
        self._keys = keys.new_zeros(capacity_rows, keys.shape[1], window_tokens, keys.shape[3])
        self._values = values.new_zeros(capacity_rows, values.shape[1], window_tokens, values.shape[3])

    @property
    def window_tokens(self) -> int:
        return self._keys.shape[2]

    @property
    def capacity_rows(self) -> int:
        return self._keys.shape[0]

    @property
    def n_bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def keys(self) -> torch.Tensor:
        return self._of_members(self._keys)

    @property
    def values(self) -> torch.Tensor:
        return self._of_members(self._values)

    def _of_members(self, slab: torch.Tensor) -> torch.Tensor:
        n = len(self.members)
        return slab if n == slab.shape[0] else slab[:n]  # each step asks every layer: a slice takes its time

    @property
    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all rows that there is room for; others once there is more room."""
        return self._keys, self._values

    def clear(self) -> None:
        """Forget all rows, and what they left behind."""
        self.members, self._n_used = [], 0
        self._keys.zero_()
        self._values.zero_()

    def reserve(self, capacity_rows: int, window_tokens: int) -> None:
        """Make room for at least so many rows and tokens, keeping what is held."""
        rows, window = self._keys.shape[0], self._keys.shape[2]
        if capacity_rows <= rows and window_tokens <= window:
            return
        # Twice as much as before, so that rows that join and tokens that come are seldom copied.
        rows = rows if capacity_rows <= rows else max(capacity_rows, 2 * rows)
        window = window if window_tokens <= window else max(window_tokens, 2 * window)
        self._keys, self._values = (self._grown(old, rows, window) for old in (self._keys, self._values))
        self._n_used = len(self.members)

    def _grown(self, old: torch.Tensor, rows: int, window: int) -> torch.Tensor:
        new = old.new_zeros(rows, old.shape[1], window, old.shape[3])
        n = len(self.members)
        new[:n, :, : old.shape[2]] = old[:n]
        return new

    def append(
        self, members: Sequence[int], keys: torch.Tensor, values: torch.Tensor, padding: Sequence[int], width: int
    ) -> None:
        """Take over the prompts of further rows from a left-padded pass.

        Args:
            members: their rows in the batch.
            keys, values: (rows, n_kv_heads, n_held, width of a head) of these rows, the latest `n_held` columns of the pass.
            padding: columns of padding before each prompt.
            width: columns of the pass.
        """
        first = len(self.members)
        self.members = [*self.members, *members]
        # What rows before left behind need not be finite, and no weight of 0 would keep that from these.
        for slab in (self._keys, self._values):
            slab[first : min(self._n_used, len(self.members))] = 0
        self._n_used = max(self._n_used, len(self.members))
        beyond = width - keys.shape[2]  # columns that a sliding window has left behind
        targets, sources = [], []
        for mine, new in ((self._keys, keys), (self._values, values)):
            for row, before in enumerate(padding):
                start = max(before, beyond)
                targets.append(mine[first + row, :, start - before : width - before])
                sources.append(new[row, :, start - beyond :])
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it

    def keep(self, kept: Sequence[bool], renumbered: Sequence[int]) -> None:
        """Forget rows of the batch: each hole is filled with the last row that stays, and no other row moves.

        Args:
            kept: by row of the batch.
            renumbered: the new number of each row of the batch that stays.
        """
        staying = sum(kept[row] for row in self.members)
        tail = [place for place in range(staying, len(self.members)) if kept[self.members[place]]]
        for hole in (place for place in range(staying) if not kept[self.members[place]]):
            last = tail.pop()
            self._keys[hole] = self._keys[last]
            self._values[hole] = self._values[last]
            self.members[hole] = self.members[last]
        self.members = [renumbered[row] for row in self.members[:staying]]


def window_for(tokens: int, step_tokens: int = WINDOW_TOKENS) -> int:
    """The window that holds so many tokens: a multiple of `step_tokens`."""
    return -(-tokens // step_tokens) * step_tokens
