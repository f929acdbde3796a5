"""An attention function of Depthdial's own in transformers' models: registered by name, and put on views alone.

A view's configurations are copies of its own; the user's model keeps what it has.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from depthdial.errors import InputError
from depthdial.hf.architectures import OWN_ATTENTION, decoder_stack

# The implementation of transformers whose results and masks the own one has.
STOCK_ATTENTION = "sdpa"
# What layers pass on to it without effect where there is a mask. Anything else that is not None may have one.
WITHOUT_EFFECT = frozenset(
    (
        *("cache_position", "is_causal", "position_ids", "position_embeddings", "sliding_window", "use_cache"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep"),
    )
)


def check_attention(model: Any) -> None:
    """InputError for an implementation of attention that takes no masks for padded rows at the lengths of decoding.

    Paged ones are for transformers' continuous batching alone; FlexAttention compiles a kernel for each length.
    """
    name = str(getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None))
    if name == "flex_attention" or name.startswith("paged"):
        raise InputError(
            f"The attention implementation {name!r} cannot run batches of unlike lengths step by step: load the model with "
            "attn_implementation='sdpa'."
        )


def stock_attention() -> Callable[..., Any]:
    """transformers' function of `torch.nn.functional.scaled_dot_product_attention`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[STOCK_ATTENTION]


def use_attention(view: Any, attention: Callable[..., Any]) -> bool:
    """Have the layers of a view compute attention by a function of the project's own, in place of transformers' `sdpa`.

    Args:
        view: a view, whose configurations are its own.
        attention: takes and returns what transformers' attention functions do; registered with transformers at first use.

    Returns:
        False, and the view stays as it is, where the model does not use `sdpa` or its code does not look the function up
        by the configuration's name alone.
    """
    config = view.config.get_text_config(decoder=True)
    if config._attn_implementation not in (STOCK_ATTENTION, OWN_ATTENTION):
        return False
    if not all(map(_looks_up, {type(layer) for layer in decoder_stack(view).layers})):
        return False
    _register(attention)
    for one in _configs(view):
        if one._attn_implementation == STOCK_ATTENTION:
            one._attn_implementation_internal = OWN_ATTENTION
    return True


@functools.cache
def _register(attention: Callable[..., Any]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(OWN_ATTENTION, attention)
    AttentionMaskInterface.register(OWN_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS[STOCK_ATTENTION])


@functools.cache
def _looks_up(layer: type[nn.Module]) -> bool:
    # transformers itself tells by the source (`_can_set_attn_implementation`). Code that names "sdpa" has a branch of its
    # own for it (Falcon with ALiBi, DeepSeek 3.2), which another name would not take.
    try:
        code = inspect.getsource(sys.modules[layer.__module__])
    except (KeyError, OSError, TypeError):
        return False
    return "ALL_ATTENTION_FUNCTIONS" in code and f'"{STOCK_ATTENTION}"' not in code


def _configs(view: nn.Module) -> Iterator[Any]:
    """Every configuration object of a view's modules, and those inside it, once."""
    seen: dict[int, Any] = {}
    for module in view.modules():
        config = module.__dict__.get("config")
        for one in () if config is None else (config, *vars(config).values()):
            if hasattr(one, "get_text_config"):
                seen[id(one)] = one
    yield from seen.values()
