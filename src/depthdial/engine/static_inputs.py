"""Tensors that stay where they are, in which recorded parts of a pass find what differs from one pass to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from depthdial.engine.walk import Block, Call, Pass, Sight, StoppedError, Walk, mask_of

MOST_ROWS = 256  # of a pass through graphs: with more, launches matter little


class StaticInputs:
    """What passes of some tokens a row work on: a row for each of a batch, behind row 0, which belongs to none.

    Attributes:
        tokens, positions: (MOST_ROWS + 1, n_tokens).
        states: (MOST_ROWS + 1, n_tokens, width) behind the layers that have run; there once `make` has run.
    """

    states: torch.Tensor

    def __init__(self, n_tokens: int, device: torch.device) -> None:
        self.n_tokens = n_tokens
        self.tokens = torch.zeros(MOST_ROWS + 1, n_tokens, dtype=torch.long, device=device)
        self.positions = torch.arange(n_tokens, device=device).repeat(MOST_ROWS + 1, 1)
        self._mask, self._cache = torch.zeros(1, 1, 1, 1, device=device), object()  # stand-ins, as in `Walk.run_pass`
        self._calls: dict[int, Call] | None = None
        self._tensors: list[torch.Tensor] = []
        self._masks: dict[int, dict[Sight, torch.Tensor]] = {}

    def fill(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Put in the (n_rows, n_tokens) tokens and positions of a pass."""
        self.tokens[1 : len(tokens) + 1].copy_(tokens)
        self.positions[1 : len(tokens) + 1].copy_(positions)

    def make(self, walk: Walk, window: int, n_rows: int) -> torch.Tensor:
        """Compute the states before the first layer, and what layers are called with, of row 0 and the `n_rows` behind."""

        def put(states: torch.Tensor, now: Pass) -> torch.Tensor:
            self._put(walk, states, now)
            return states

        try:
            walk.run_pass(self.block(slice(0, n_rows + 1), window), instead=put, stops=True)
        except StoppedError:
            return self.states
        raise AssertionError("a pass that stops has gone on")

    def as_pass(self, slabs: Mapping[int, Any], window: int) -> Pass:
        """A pass over all rows, as far as its layers look at it."""
        assert self._calls is not None
        calls, masks = self._calls, self._masks[window]
        block = Block(self.tokens, self.positions, (), slabs, window)
        return Pass(block, self._cache, self._mask, calls=calls, sights=masks)

    def block(self, rows: slice, window: int) -> Block:
        """Some of the rows, without layers."""
        return Block(self.tokens[rows], self.positions[rows], (), {}, window)

    def _put(self, walk: Walk, states: torch.Tensor, now: Pass) -> None:
        n, window = len(states), now.block.attended_tokens
        masks = {sight: mask_of(now.block.positions, window, *sight, states.dtype) for sight in dict.fromkeys(walk.sights)}
        tensors = [tensor for call in now.calls.values() for tensor in _tensors(call, now.mask)]
        if self._calls is None:  # the first time, which is not recorded
            self.states = _room(states, n)
            self._tensors = [_room(tensor, n) for tensor in tensors]
            left = iter(self._tensors)
            self._calls = {kind: self._with(call, now, left) for kind, call in now.calls.items()}
        if window not in self._masks:
            self._masks[window] = {sight: _room(mask, n) for sight, mask in masks.items()}
        rooms = [self.states, *self._tensors, *self._masks[window].values()]
        for room, value in zip(rooms, [states, *tensors, *masks.values()], strict=True):
            (room if room.shape == value.shape else room[:n]).copy_(value)

    def _with(self, call: Call, now: Pass, tensors: Any) -> Call:
        """A call with other tensors, in order, and the stand-ins of all passes."""

        def other(value: torch.Tensor) -> torch.Tensor:
            return self._mask if value is now.mask else next(tensors)

        mapped = Call(_mapped(call.args, other), {name: _mapped(value, other) for name, value in call.kwargs.items()})
        return mapped.replaced(now.cache, self._cache)


def _room(value: torch.Tensor, n_rows: int) -> torch.Tensor:
    """A tensor for what is like `value`, of all rows where that has `n_rows`."""
    is_by_row = value.dim() > 0 and len(value) == n_rows
    return value.new_zeros(MOST_ROWS + 1, *value.shape[1:]) if is_by_row else torch.zeros_like(value)


def _tensors(call: Call, mask: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(value: torch.Tensor) -> torch.Tensor:
        if value is not mask:
            found.append(value)
        return value

    for value in (*call.args, *call.kwargs.values()):
        _mapped(value, note)
    return found


def _mapped(value: Any, other: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return other(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(one, other) for one in value)
    return value
