"""KV caches of views: made for another number of layers, cut to a route's, and marked with what they hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_in, cache_name
from depthdial.hf.facts import stated_layers, text_config

_MARK = "depthdial_held"


@dataclass(frozen=True)
class Held:
    """What a cache holds that a view has written to."""

    layers: tuple[int, ...]  # as the whole model numbers them
    n_full: int  # columns, from the first on, that have run every layer


def mark(cache: Any, layers: Sequence[int], n_full: int) -> None:
    cache.__dict__[_MARK] = Held(tuple(layers), n_full)


def held(cache: Any) -> Held | None:
    """What a view has marked; None for any other cache."""
    return getattr(cache, "__dict__", {}).get(_MARK)


def check_kind(cache: Any) -> None:
    """InputError for what is not a cache of transformers, such as the tuples of old."""
    if cache is not None and not hasattr(cache, "layers"):
        raise InputError(
            f"The cache in {cache_name()} is a {type(cache).__name__}: pass a transformers Cache, such as DynamicCache."
        )


def n_cached(cache: Any) -> int:
    """Columns that a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def check_layers(cache: Any, layers: Sequence[int]) -> None:
    """InputError if a cache that is not empty is of other layers than these."""
    marked = held(cache)
    if len(cache.layers) != len(layers) or (marked is not None and marked.layers != tuple(layers)):
        those = f"{len(cache.layers)} layers" if marked is None else f"layers {', '.join(map(str, marked.layers))}"
        raise InputError(
            f"The KV cache is of {those}, and this view runs {', '.join(map(str, layers))}: continue on a cache that this "
            "view, or the whole model, has written."
        )


def watch_cache(owner: nn.Module) -> None:
    """Have the module that holds a view's layers check every cache that it is called with."""
    if _check_cache not in owner._forward_pre_hooks.values():  # a view of a view has its hooks already
        owner.register_forward_pre_hook(_check_cache, with_kwargs=True)


def unwatch_cache(owner: nn.Module) -> None:
    """The opposite, on a private view that is called with no cache but the engine's own."""
    for key, hook in list(owner._forward_pre_hooks.items()):
        if hook is _check_cache:
            del owner._forward_pre_hooks[key]


def _check_cache(owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = cache_in(kwargs)
    n_layers = stated_layers(owner)
    layers = getattr(cache, "layers", None)
    if layers is None or len(layers) == n_layers:
        return
    from transformers.cache_utils import DynamicCache

    if len(layers) == len(DynamicCache(config=text_config(owner)).layers):  # not every layer need have a cache of its own
        return
    if n_cached(cache):
        raise InputError(
            f"The KV cache is of {len(layers)} layers, and this view runs {n_layers}: continue on a cache "
            "that the view has written, or use dd.prompted_view, which continues on one of the whole model."
        )
    if layers:  # without any, they come as they are written to
        empty(cache, owner)


def empty(cache: Any, model: Any) -> None:
    """Make a cache an empty one for a model, of the same kind; InputError if no configuration gives its kinds of layers."""
    from transformers.cache_utils import DynamicCache

    records = any(getattr(layer, "record_past", False) for layer in cache.layers)
    kinds = {type(layer) for layer in cache.layers}
    if type(cache) is DynamicCache:
        # One that was made without a configuration is filled as layers come.
        cache.layers = [] if cache.layer_class_to_replicate is not None else DynamicCache(config=text_config(model)).layers
    elif len(kinds) == 1:  # a quantized one, whose layers are all alike
        cache.layers[0].reset()
        cache.layers = [copy.copy(cache.layers[0]) for _ in range(stated_layers(model))]
    else:
        raise InputError(
            f"A {type(cache).__name__} cannot be made for another number of layers: leave {cache_name()} out, or pass a "
            "DynamicCache."
        )
    cache.__dict__.pop(_MARK, None)
    if records:
        cache.activate_past_recording()


def cut(cache: Any, layers: Sequence[int], n_full: int) -> None:
    """Leave only these layers of a whole model's cache, of whose columns the first `n_full` have run them all."""
    cache.layers = [cache.layers[i] for i in layers]
    mark(cache, layers, n_full)
