"""One pass of some tokens behind slabs of keys and values, layer by layer, each for the rows whose route has it.

Embeddings, rotary frequencies, final norm and head are the model's own forward, run on a view of one layer of each kind
whose layers only take down what they are called with. The last of them then walks the real layers, transformers' own
modules, in order: a layer that no row runs is not touched, one that some rows run gets those rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depthdial.engine.attention import use_grouped_attention
from depthdial.engine.compiled import CompiledLayers
from depthdial.engine.slabs import LayerCache, Slab, flat_places
from depthdial.hf.architectures import (
    PER_SEQUENCE_ARGUMENTS,
    PER_TOKEN_ARGUMENTS,
    accepts,
    count_layers,
    decoder_stack,
    layer_states,
)
from depthdial.hf.cache_name import cache_argument
from depthdial.hf.facts import ModelFacts
from depthdial.hf.norms import fuse_norms
from depthdial.routes import Route
from depthdial.views.cache import unwatch_cache
from depthdial.views.view import known_view, quiet_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sight = tuple[int | None, bool]  # of how many tokens a layer sees, None for all; whether these are its chunk's

_BY_ROW = frozenset({*PER_TOKEN_ARGUMENTS, *PER_SEQUENCE_ARGUMENTS})


class UnsupportedPassError(Exception):
    """This architecture calls its layers with something that a walk does not know how to give."""


@dataclass(frozen=True)
class Segment:
    """Successive layers that the same rows run.

    Attributes:
        layers: their indices.
        rows: of the batch, in the order of the layers' slabs: a slice where they are its first ones, else (n_rows,).
    """

    layers: tuple[int, ...]
    rows: slice | torch.Tensor
    n_rows: int


@dataclass(frozen=True)
class Block:
    """Tokens of a batch that a pass runs, through which layers, and what lies behind them.

    Attributes:
        tokens: (n_rows, n_tokens).
        positions: (n_rows, n_tokens), by which a token is rotated and which are its slots.
        segments: of the layers, in order.
        slabs: of each of these layers.
        attended_tokens: how many slots are looked at, from the first on; no position is beyond.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    segments: Sequence[Segment]
    slabs: Mapping[int, Slab]
    attended_tokens: int


@dataclass(frozen=True)
class Call:
    """What a layer is called with beside hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def replaced(self, stand_in: Any, by: Any) -> Call:
        """The same with something else in a stand-in's place."""
        return Call(
            tuple(by if value is stand_in else value for value in self.args),
            {name: by if value is stand_in else value for name, value in self.kwargs.items()},
        )

    def has(self, stand_in: Any) -> bool:
        return any(value is stand_in for value in (*self.args, *self.kwargs.values()))


@dataclass
class Prefix:
    """Hidden states of tokens behind the first layers, which a draft and the full model have in common.

    Attributes:
        n_layers: how many, from layer 0 on.
        states: (n_rows, n_tokens, width) of successive passes.
    """

    n_layers: int
    states: list[torch.Tensor] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(one.shape[1] for one in self.states)


class StoppedError(Exception):
    """Ends the model's forward behind its layers, before norm and head.

    Attributes:
        states: (n_rows, n_tokens, width) behind the layers.
    """

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


@dataclass
class Pass:
    """What one pass works on.

    Attributes:
        start: hidden states in place of the embeddings'; None for these.
        keep: where the states behind its first layers are put down; None for nowhere.
        stops: whether the states behind the layers are all that is wanted.
        instead: called in place of the layers, with the embeddings' states and this pass; returns the states behind them.
        calls: what the layers of each kind are called with.
        sights: the mask of each pair of (tokens seen, whether in chunks).
    """

    block: Block
    cache: Any
    mask: torch.Tensor
    start: torch.Tensor | None = None
    keep: Prefix | None = None
    stops: bool = False
    instead: Callable[[torch.Tensor, Pass], torch.Tensor] | None = None
    calls: dict[int, Call] = field(default_factory=dict)
    sights: dict[Sight, torch.Tensor] = field(default_factory=dict)


class Walk:
    """Runs passes of a model that is never changed; not to be used by two threads at once.

    Args:
        model: a view of all its layers, in evaluation mode.

    Attributes:
        n_recorded: how often something was recorded on the way, see `GraphedWalk`: never here.
    """

    n_recorded = 0

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers.cache_utils import DynamicCache

        n_layers = count_layers(model)
        model = known_view(model, Route(tuple(range(n_layers)), n_layers), made_by=_with_grouped_attention)
        self._layers = list(decoder_stack(model).layers)
        self._compiled = CompiledLayers.of(model)
        self._facts = ModelFacts.of(model)
        self.sights: list[Sight] = list(zip(self._facts.windows, self._facts.chunked, strict=True))
        kinds = list(dict.fromkeys(self._facts.kinds))
        self._kind_of = [kinds.index(kind) for kind in self._facts.kinds]
        self._host = quiet_view(model, [self._facts.kinds.index(kind) for kind in kinds], check=False)
        stubs = decoder_stack(self._host).layers
        for kind, stub in enumerate(stubs):
            # Hooks are the layers' own business, which run as often as they do.
            stub._forward_hooks.clear()
            stub._forward_pre_hooks.clear()
            stub.__dict__["forward"] = functools.partial(self._called, kind, kind == len(stubs) - 1)
        unwatch_cache(self._host.get_submodule(".".join(decoder_stack(self._host).path[:-1])))
        # Read once: signatures take as long as a layer does.
        self._takes_positions = accepts(self._host, "position_ids")
        # The layers' calls are searched for these; a mask of four dimensions is passed on as it is.
        device = next(self._host.parameters()).device
        self._stand_ins = DynamicCache(), torch.zeros(1, 1, 1, 1, device=device)
        (self._cache_name,) = cache_argument(self._host, None)
        self._now: Pass | None = None

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    def slab(self, layer: int, keys: torch.Tensor, values: torch.Tensor, capacity_rows: int, window_tokens: int) -> Slab:
        """An empty slab for a layer, like `keys` and `values`, for at least so many rows and tokens."""
        return Slab(keys, values, capacity_rows, window_tokens)

    def logits(self, block: Block, *, start: torch.Tensor | None = None, keep: Prefix | None = None) -> torch.Tensor:
        """Logits behind each token, (n_rows, n_tokens, vocabulary); keys and values go to the slabs.

        Args:
            start: (n_rows, n_tokens, width) states to start from, where the segments begin behind the first layers.
            keep: gets the states behind its first layers, of every row; a segment of all rows must have the last of them.

        Raises:
            UnsupportedPassError: if the architecture's forward does something that a walk cannot follow.
        """
        return self.run_pass(block, start=start, keep=keep).logits

    def states(self, block: Block) -> torch.Tensor:
        """Hidden states behind the segments' layers, (n_rows, n_tokens, width): a pass as above, without norm and head."""
        try:
            self.run_pass(block, stops=True)
        except StoppedError as stopped:
            return stopped.states
        raise UnsupportedPassError("its last layer is not called")

    def run_pass(self, block: Block, **options: Any) -> Any:
        """The model's own output of a pass.

        Args:
            options: further fields of `Pass`.

        Raises:
            StoppedError: with the states behind the layers, for a pass that stops there.
        """
        cache, mask = self._stand_ins
        inputs: dict[str, Any] = {"input_ids": block.tokens, "attention_mask": mask, "use_cache": True}
        inputs[self._cache_name] = cache
        if self._takes_positions:
            inputs["position_ids"] = block.positions
        self._now = Pass(block, cache, mask, **options)
        try:
            return self._host(**inputs)
        finally:
            self._now = None

    def _called(self, kind: int, is_last: bool, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        now = self._now
        assert now is not None
        now.calls[kind] = call = Call(args, kwargs)
        layer = self._layers[self._kind_of.index(kind)]
        if type(layer) not in _tuples:
            _tuples[type(layer)] = _returns_tuple(layer, hidden, call, now)
        if is_last:
            hidden = (now.instead or self._walk)(hidden if now.start is None else now.start, now)
            if now.stops:
                raise StoppedError(hidden)
        return (hidden,) if _tuples[type(layer)] else hidden

    def _walk(self, hidden: torch.Tensor, now: Pass) -> torch.Tensor:
        hidden = hidden.clone()  # of which rows are replaced
        for segment in now.block.segments:
            hidden[segment.rows] = self.segment_states(hidden[segment.rows], now, segment)
        return hidden

    def segment_states(self, part: torch.Tensor, now: Pass, segment: Segment) -> torch.Tensor:
        """Run the rows of a segment, (n_rows, n_tokens, width), through its layers."""
        block = now.block
        positions = block.positions[segment.rows]
        places: dict[tuple[int, int], torch.Tensor] = {}  # by heads and window: slabs made later may have another window
        calls: dict[tuple[int, Sight], Call] = {}
        for layer in segment.layers:
            slab, kind, sight = block.slabs[layer], self._kind_of[layer], self.sights[layer]
            if (kind, sight) not in calls:
                if sight not in now.sights:
                    now.sights[sight] = mask_of(block.positions, block.attended_tokens, *sight, part.dtype)
                calls[kind, sight] = _of_segment(now, kind, segment, now.sights[sight])
            call, keys, values = calls[kind, sight], slab.keys, slab.values
            fast = self._compiled.find(layer, *positions.shape)
            done = None if fast is None else fast(part, call.kwargs, keys, values, positions, call.args)
            if done is None:
                form = keys.shape[1], keys.shape[2]
                if form not in places:
                    places[form] = flat_places(positions, keys)
                call = call.replaced(now.cache, LayerCache(keys, values, positions, places[form], block.attended_tokens))
                done = layer_states(self._layers[layer](part, *call.args, **call.kwargs))
            part = done
            if now.keep is not None and layer == now.keep.n_layers - 1:
                assert segment.n_rows == len(block.positions) and isinstance(segment.rows, slice)
                now.keep.states.append(part)
        return part


def _with_grouped_attention(model: Any, route: Route) -> PreTrainedModel:
    view = quiet_view(model, route)
    use_grouped_attention(view)
    if next(view.parameters()).device.type == "cuda":  # where each kernel of a small step takes the same time
        fuse_norms(view)
    return view


def _of_segment(now: Pass, kind: int, segment: Segment, mask: torch.Tensor) -> Call:
    """What a layer is called with for the rows of a segment."""
    call = now.calls[kind]
    if not call.has(now.cache):
        raise UnsupportedPassError("its layers take no KV cache")
    if not call.has(now.mask):
        raise UnsupportedPassError("it makes masks of its own")
    call = call.replaced(now.mask, mask := mask[segment.rows])
    kwargs = dict(call.kwargs)
    for name, value in kwargs.items():
        if name in _BY_ROW:
            kwargs[name] = _of_rows(value, segment.rows, len(now.block.positions))
        else:
            _refuse_unknown(name, value, mask)
    for value in call.args:
        _refuse_unknown("without a name", value, mask)
    return Call(call.args, kwargs)


def _refuse_unknown(name: str, value: Any, mask: torch.Tensor) -> None:
    if isinstance(value, torch.Tensor) and value.dim() and value is not mask:
        raise UnsupportedPassError(f"its layers take a tensor {name}")


def _of_rows(value: Any, rows: slice | torch.Tensor, n_rows: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and value.shape[0] == n_rows else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(one, rows, n_rows) for one in value)
    return value


def mask_of(
    positions: torch.Tensor, window_tokens: int, seen_tokens: int | None, is_chunked: bool, dtype: torch.dtype
) -> torch.Tensor:
    """What is added to attention, (n_rows, 1, n_tokens, window): a token sees its own slot and those before it.

    Args:
        seen_tokens: how many, of the latest or of its own chunk; None for all.
    """
    slots = torch.arange(window_tokens, device=positions.device)
    own = positions[:, None, :, None]
    seen = slots <= own
    if seen_tokens is not None:
        seen &= slots >= own // seen_tokens * seen_tokens if is_chunked else slots > own - seen_tokens
    return torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill_(~seen, torch.finfo(dtype).min)


# Whether a class of layers returns a tuple: asked once, by calling a layer.
_tuples: dict[type[nn.Module], bool] = {}


def _returns_tuple(layer: nn.Module, hidden: torch.Tensor, call: Call, now: Pass) -> bool:
    from transformers.cache_utils import DynamicCache

    call = call.replaced(now.cache, DynamicCache()).replaced(now.mask, None)
    return isinstance(layer(hidden, *call.args, **call.kwargs), tuple)
