"""The batch that decodes: rows of any depth that join after their prompts, step together and leave when they are done.

A step walks the layers once; a layer runs for the rows whose route has it (layer-major). Rows of nested routes that join
deepest first are the first rows of every layer, so nothing is gathered; any other mix is gathered layer by layer, the
hidden states only, never keys and values.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from depthdial.engine.closeness import largest_difference
from depthdial.engine.graphs import GraphedWalk, stepping
from depthdial.engine.prefill import Prefill, continue_on, left_padded, prefill
from depthdial.engine.slabs import ATTENDED_TOKENS, Slab, window_for
from depthdial.engine.walk import Block, Prefix, Segment, UnsupportedPassError, Walk
from depthdial.errors import InputError, one_line
from depthdial.hf.architectures import count_layers
from depthdial.hf.facts import ModelFacts, config_text
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.view import known_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROOM_TOKENS = 256  # at most so many are made room for at once: most answers end before their limit


@dataclass
class _Row:
    key: Hashable
    route: Route
    n_tokens: int


class RowBatch:
    """Rows in decoding: their keys and values, and passes over their next tokens.

    Args:
        model: a view of all its layers in evaluation mode, as a session has it, for which `in_rows` is true.
        capacity_rows: rows to make room for at once; more are taken too.
        compile: whether steps may run in other ways than layer by layer, such as CUDA graphs.

    Example:
        >>> session = Session.of(model, tokenizer)
        >>> ready = session.prefill_ids([[5, 6, 7], [8, 9]])
        >>> batch = RowBatch(session.model)
        >>> batch.join(ready, [session.full, Route((0, 3), 6)], keys=["deep", "shallow"])
        >>> batch.keys
        ('deep', 'shallow')
        >>> batch.step(torch.tensor([4, 4])).shape  # one token a row
        torch.Size([2, 30])
        >>> batch.leave(["deep"])
        >>> batch.keys
        ('shallow',)
    """

    def __init__(self, model: PreTrainedModel, capacity_rows: int = 1, *, compile: bool = True) -> None:
        self._walk = stepping(model) if compile else Walk(model)
        self._capacity_rows = capacity_rows
        self._rows: list[_Row] = []
        self._slabs: dict[int, Slab] = {}
        self._plans: dict[frozenset[int] | None, tuple[Segment, ...]] = {}
        self.freed_bytes = 0

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The rows in their order, which changes when rows join or leave."""
        return tuple(row.key for row in self._rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each row has behind it."""
        return tuple(row.n_tokens for row in self._rows)

    @property
    def n_recorded(self) -> int:
        """How often graphs were recorded for this model: the time of a pass in which this grows says nothing of others."""
        return self._walk.n_recorded

    @property
    def n_bytes(self) -> int:
        """Of the slabs: those of layers that a row runs."""
        return sum(slab.n_bytes for slab in self._slabs.values())

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, prefilled: Prefill, routes: Sequence[Route], keys: Sequence[Hashable], new_tokens: int = 1) -> None:
        """Take in prompts that have run, one route and one key each.

        The prompt's keys and values of layers that a row's route does not have are not taken over: they go with `prefilled`,
        and `freed_bytes` counts them.

        Args:
            new_tokens: how many tokens are to come, to make room for at once; more are taken too.

        Raises:
            InputError: if a layer of a route did not see its prompt.
        """
        places = {layer: i for i, layer in enumerate(prefilled.route.layers)}
        for route in routes:
            prefilled.require_layers(route)
        chosen = [frozenset(route.layers) for route in routes]
        lengths = prefilled.attention_mask.sum(1).tolist()
        width = prefilled.input_ids.shape[1]
        order = sorted(range(len(routes)), key=lambda i: -len(routes[i]))  # deepest first: nested routes need no gathering
        first = len(self._rows)
        self._rows += [_Row(keys[i], routes[i], lengths[i]) for i in order]
        window = window_for(max(row.n_tokens for row in self._rows) + min(new_tokens, _ROOM_TOKENS))
        for layer, place in places.items():
            cached: Any = prefilled.cache.layers[place]
            mine = [(first + n, i) for n, i in enumerate(order) if layer in chosen[i]]
            row_bytes = (cached.keys.nbytes + cached.values.nbytes) // len(routes)
            self.freed_bytes += row_bytes * (len(routes) - len(mine))
            if mine:
                self._append(layer, cached, mine, [width - lengths[i] for _, i in mine], width, window)
        self._plans.clear()

    def _append(
        self, layer: int, cached: Any, mine: Sequence[tuple[int, int]], padding: Sequence[int], width: int, window: int
    ) -> None:
        rows = [i for _, i in mine]
        keys, values = cached.keys, cached.values
        if rows != list(range(len(keys))):
            keys, values = keys[rows], values[rows]
        if layer not in self._slabs:
            self._slabs[layer] = self._walk.slab(layer, keys, values, max(self._capacity_rows, len(rows)), window)
        slab = self._slabs[layer]
        slab.reserve(len(slab.members) + len(rows), window)
        slab.append([row for row, _ in mine], keys, values, padding, width)

    def leave(self, keys: Iterable[Hashable]) -> None:
        """Forget rows."""
        gone = set(keys)
        kept = [row.key not in gone for row in self._rows]
        if all(kept):
            return
        # The rows of the fullest layer come first, in its order: where all have one route, nothing is gathered.
        fullest = max(self._slabs.values(), key=lambda slab: len(slab.members), default=None)
        same = list(range(len(kept)))
        for slab in self._slabs.values():
            slab.keep(kept, same)
        order = [] if fullest is None else list(fullest.members)
        placed = set(order)
        order += [i for i in same if kept[i] and i not in placed]
        renumbered = {old: new for new, old in enumerate(order)}
        for layer, slab in list(self._slabs.items()):
            slab.members = [renumbered[row] for row in slab.members]
            if not slab.members:
                del self._slabs[layer]
        self._rows = [self._rows[i] for i in order]
        self._plans.clear()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the next token of every row, (n_rows,); logits behind it, (n_rows, vocabulary)."""
        logits = self.run(tokens[:, None])[:, -1]
        self.advance([1] * len(self._rows))
        return logits

    def run(
        self,
        tokens: torch.Tensor,
        *,
        ahead: int = 0,
        layers: frozenset[int] | None = None,
        keep: Prefix | None = None,
        resume: Prefix | None = None,
        walk: Walk | None = None,
    ) -> torch.Tensor:
        """A pass over tokens behind the rows' lengths, which stay as they are: what is written counts once they `advance`.

        Args:
            tokens: (n_rows, n_tokens).
            ahead: tokens that lie between a row's length and the first of these, written by passes before this one.
            layers: run only these of a row's layers.
            keep: put down the states behind the first layers of the pass, which every row runs.
            resume: what such passes put down of the first of these tokens, which those layers are not run on again.
            walk: of other weights in the same shape, such as with an adapter.

        Returns:
            Logits behind each token, (n_rows, n_tokens, vocabulary).
        """
        stepper: Walk | GraphedWalk = walk or self._walk
        n_tokens = tokens.shape[1]
        end = max(self.lengths) + ahead + n_tokens
        window = window_for(end, ATTENDED_TOKENS)
        for slab in self._slabs.values():
            slab.reserve(0, window_for(end))
        starts = torch.tensor(self.lengths, device=tokens.device) + ahead
        positions = starts[:, None] + torch.arange(n_tokens, device=tokens.device)
        block = Block(tokens, positions, self._plan(layers), self._slabs, window)
        with as_is(tokens.device):
            if resume is None or not resume.n_tokens:
                return stepper.logits(block, keep=keep)
            first, known = self._first_layers(layers, resume.n_layers), resume.n_tokens
            rest = self._plan(frozenset(self._slabs if layers is None else layers) - first)
            states = list(resume.states)
            if known < n_tokens:
                missing = Block(tokens[:, known:], positions[:, known:], self._plan(first), self._slabs, window)
                states.append(stepper.states(missing))
            return stepper.logits(replace(block, segments=rest), start=torch.cat(states, dim=1), keep=keep)

    def _first_layers(self, layers: frozenset[int] | None, n_layers: int) -> frozenset[int]:
        return frozenset(range(n_layers)).intersection(self._slabs if layers is None else layers)

    def advance(self, n_tokens: Sequence[int]) -> None:
        """Count tokens of the last passes as the rows' own, so many of each; a negative number takes tokens back."""
        for row, n in zip(self._rows, n_tokens, strict=True):
            row.n_tokens += n

    def _plan(self, layers: frozenset[int] | None) -> tuple[Segment, ...]:
        if layers not in self._plans:
            found: list[tuple[list[int], list[int]]] = []
            for layer in sorted(self._slabs):
                members = self._slabs[layer].members
                if layers is not None and layer not in layers:
                    continue
                if found and found[-1][1] == members:
                    found[-1][0].append(layer)
                else:
                    found.append(([layer], members))
            self._plans[layers] = tuple(Segment(tuple(which), _rows(rows), len(rows)) for which, rows in found)
        return self._plans[layers]


def _rows(members: list[int]) -> slice | torch.Tensor:
    return slice(0, len(members)) if members == list(range(len(members))) else torch.tensor(members)


# Why a kind of model cannot be run in rows; None for one that can. By class and configuration.
_known: dict[tuple[type, str], str | None] = {}
_told: set[str] = set()
_log = logging.getLogger("depthdial")
_asked: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def in_rows(model: PreTrainedModel) -> bool:
    """Whether a model is decoded in a `RowBatch`; where it cannot be, that is said once."""
    reason = why_not_in_rows(model)
    name = type(model).__name__
    if reason is not None and name not in _told:
        _told.add(name)
        _log.warning("%s is decoded through transformers' own cache, which is slower, because %s.", name, reason)
    return reason is None


def why_not_in_rows(model: PreTrainedModel) -> str | None:
    """Why a model cannot be decoded in a `RowBatch`; None where it can.

    Found out once for each class and configuration: two prompts of unlike length are decoded for some steps both ways,
    through transformers' own cache and in rows, and the logits must be the same.

    Args:
        model: a view of all its layers in evaluation mode.
    """
    if model not in _asked:
        kind = (type(model), config_text(model))
        if kind not in _known:
            _known[kind] = _tried(model)
        _asked[model] = _known[kind]
    return _asked[model]


_TRIED_PROMPTS, _TRIED_STEPS = ((0, 1, 2, 3, 4), (5, 6)), 2
_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}
_CLOSE_OF_HALVES = 0.05


def _tried(model: PreTrainedModel) -> str | None:
    facts = ModelFacts.of(model)
    if not facts.rope.isdisjoint({"dynamic", "longrope"}):
        return "its rotary frequencies follow the longest sequence of a batch"
    if facts.vocabulary < 8:
        return "its vocabulary is too small to try"
    device = next(model.parameters()).device
    try:
        with as_is(device):
            return _difference(model, device)
    except (UnsupportedPassError, InputError) as error:
        return str(error)
    except Exception as error:  # whatever an architecture raises when it is called in a way of ours
        return f"{type(error).__name__}: {one_line(error)}"


def _difference(model: PreTrainedModel, device: torch.device) -> str | None:
    n_layers = count_layers(model)
    is_half = model.dtype not in _CLOSE
    full = Route(tuple(range(n_layers)), n_layers, "full")
    # Half of the layers make a trained model's states so wild that halves of floats round them to anything.
    left_out = range(n_layers // 2, n_layers // 2 + 1) if is_half and n_layers > 1 else range(1, n_layers, 2)
    route = Route(tuple(layer for layer in range(n_layers) if layer not in left_out), n_layers)
    ready = _prefilled(model, _TRIED_PROMPTS, device)
    cached: Any = ready.cache.layers
    if any(getattr(layer, "keys", None) is None or layer.keys.dim() != 4 for layer in cached):
        return "its KV cache holds something else than keys and values"
    alone = [_prefilled(model, [prompt], device) for prompt in _TRIED_PROMPTS] if is_half else []
    for depth in (full, route):
        batch = RowBatch(model, compile=False)
        batch.join(ready, [depth] * len(_TRIED_PROMPTS), keys=range(len(_TRIED_PROMPTS)))
        theirs = _their_logits(model, depth, ready, range(len(_TRIED_PROMPTS)))
        mine = [batch.step(tokens[:, 0]) for tokens in _tried_tokens(device)]
        bound = _CLOSE.get(model.dtype, _CLOSE_OF_HALVES)
        if is_half:  # transformers' own answers differ by rounding where a row is alone
            apart = [_their_logits(model, depth, one, [row]) for row, one in enumerate(alone)]
            bound += 2 * max(largest_difference(torch.cat(rows), both) for *rows, both in zip(*apart, theirs, strict=True))
        for off in map(largest_difference, mine, theirs):
            if not off <= bound:
                return f"its logits in rows are off by {off:.1e} of the largest"
    return None


def _prefilled(model: PreTrainedModel, prompts: Sequence[Sequence[int]], device: torch.device) -> Prefill:
    return prefill(model, *left_padded(prompts, 0, device))


def _tried_tokens(device: torch.device) -> list[torch.Tensor]:
    return [torch.tensor([[step], [step + 3]], device=device) for step in range(_TRIED_STEPS)]


def _their_logits(model: PreTrainedModel, depth: Route, ready: Prefill, rows: Sequence[int]) -> list[torch.Tensor]:
    """Of each tried step, (n_rows, vocabulary), through transformers' own cache."""
    running, cache, seen = known_view(model, depth), ready.cache_for(depth), ready.attention_mask
    found = []
    for tokens in _tried_tokens(seen.device):
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        found.append(continue_on(running, cache, tokens[rows], seen).logits[:, -1])
    return found
