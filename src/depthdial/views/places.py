"""Per-layer state that a decoder keeps outside its layers and configuration, moved to a view's positions.

Most decoders ask their configuration, which `architectures.cut_config` cuts. Some hold a list of their own (Molmo2's
`rope_types`), and some get features of an image that they add at given layers (DeepStack, arXiv 2406.04334: Qwen3-VL and
its kin after the first layers, Granite Vision before chosen ones).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from depthdial.errors import InputError

# Lists of a decoder module with one entry a layer: by name, for a list of as many entries may mean something else.
_PER_LAYER_ATTRIBUTES = ("rope_types",)
# Image features of a decoder's forward: a list that is added after the first layers, and by layer before it.
_AFTER_LAYERS, _BEFORE_LAYERS = "deepstack_visual_embeds", "deepstack_features"
# Where the layers of a view stand in the model that it was first made of: a view may be cut again.
_PLACES = "depthdial_places"
_INNER = "depthdial_inner_forward"


def follow_places(decoder: nn.Module, layers: Sequence[int], n_layers: int) -> None:
    """Cut what a view's decoder, the shell of the module that owns the layers, keeps by place to `layers` of `n_layers`."""
    for name in _PER_LAYER_ATTRIBUTES:
        value = decoder.__dict__.get(name)
        if isinstance(value, list | tuple) and len(value) == n_layers:
            decoder.__dict__[name] = type(value)(value[i] for i in layers)
    before = decoder.__dict__.get(_PLACES)
    if before is None and len(layers) == n_layers:
        return
    arguments = inspect.signature(type(decoder).forward).parameters
    if _AFTER_LAYERS not in arguments and _BEFORE_LAYERS not in arguments:
        return
    decoder.__dict__[_PLACES] = tuple(layers) if before is None else tuple(before[i] for i in layers)
    if before is None:
        # The forward that the features are handed to stands on the decoder, where a view of the view binds it to its own.
        inner = decoder.__dict__.get("forward") or functools.partial(type(decoder).forward, decoder)
        decoder.__dict__[_INNER] = inner
        decoder.__dict__["forward"] = functools.partial(_with_moved_features, decoder)
        if hasattr(decoder, "_deepstack_process"):
            decoder.__dict__["_deepstack_process"] = functools.partial(_add_in_turn, decoder)


def _with_moved_features(decoder: nn.Module, *args: Any, **kwargs: Any) -> Any:
    places: tuple[int, ...] = decoder.__dict__[_PLACES]
    after, before = kwargs.get(_AFTER_LAYERS), kwargs.get(_BEFORE_LAYERS)
    if isinstance(after, Sequence):
        first, kwargs[_AFTER_LAYERS] = _moved_behind(after, places)
        for features in first:
            kwargs["inputs_embeds"] = _add_to_embeddings(decoder, kwargs, features)
    if isinstance(before, Mapping):
        kwargs[_BEFORE_LAYERS] = _moved_before(before, places)
    return decoder.__dict__[_INNER](*args, **kwargs)


def _moved_behind(features: Sequence[Any], places: Sequence[int]) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """What is added to the embeddings, and then after each layer of the view: a skipped layer's goes to the one before."""
    first: list[Any] = []
    moved: list[list[Any]] = [[] for _ in places]
    for place, one in enumerate(features):
        new = sum(kept <= place for kept in places) - 1
        (first if new < 0 else moved[new]).append(one)
    return first, [tuple(ones) for ones in moved]


def _moved_before(features: Mapping[int, torch.Tensor], places: Sequence[int]) -> dict[int, torch.Tensor]:
    moved: dict[int, torch.Tensor] = {}
    for place, one in sorted(features.items()):
        new = sum(kept < place for kept in places)
        if new == len(places):
            raise InputError(
                f"Image features enter this model before its layer {place}, and the route {', '.join(map(str, places))} "
                "runs none from there on: use a route that keeps a later layer, or text alone."
            )
        moved[new] = moved[new] + one if new in moved else one
    return moved


def _add_in_turn(decoder: Any, hidden: torch.Tensor, mask: torch.Tensor, features: Any) -> torch.Tensor:
    """The class's own addition, once for each layer whose features have moved to this place."""
    for one in features if isinstance(features, tuple) else (features,):
        hidden = type(decoder)._deepstack_process(decoder, hidden, mask, one)
    return hidden


def _add_to_embeddings(decoder: Any, kwargs: Mapping[str, Any], features: torch.Tensor) -> torch.Tensor:
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None:
        raise InputError(
            "Image features of a skipped first layer need inputs_embeds: call the whole model, not its decoder."
        )
    scale = getattr(decoder, "embedding_multiplier", 1)  # Granite's decoder scales what it is given
    return type(decoder)._deepstack_process(decoder, embeddings, kwargs["visual_pos_masks"], features / scale)
