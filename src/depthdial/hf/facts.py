"""Facts that a model's configuration states, under one name each whatever the architecture calls them.

Together with `architectures` the only reader of transformers' configuration fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from depthdial.hf.architectures import OWN_ATTENTION, unwrap

_CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions")  # the second is MPT's
_CHOSEN = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_k",
    "moe_topk",
    "top_k_experts",
    "experts_per_token",
)
# Where modules and configurations keep how many tokens a token sees.
WINDOW_FIELDS = ("sliding_window", "attention_chunk_size", "local_attention")
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "local": "window_size",  # GPT-Neo
}
# Fields that say nothing of what a layer computes.
_NO_LAYERS = re.compile(r"name_or_path|architectures|transformers_version|token_id|vocab_size|dtype|problem_type|label")


@dataclass(frozen=True)
class ModelFacts:
    """What a configuration says of a decoder-only model.

    Attributes:
        name: the folder or id that the model came from; its class where it came from neither.
        width: of the hidden states.
        vocabulary: number of tokens.
        windows: tokens that a token sees at most, one entry a layer; None for all.
        kinds: of attention as the configuration names them, one a layer.
        chunked: by layer, whether a token sees those of its own chunk of `windows` tokens, and not the latest.
        context: longest sequence that the model was made for; None where the configuration does not say.
        rope: kinds of rotary frequencies, such as `default`, `llama3`, `dynamic`; empty without any.
        attention: the implementation, such as `sdpa`.
    """

    name: str
    n_layers: int
    width: int
    vocabulary: int
    windows: tuple[int | None, ...]
    kinds: tuple[str, ...]
    chunked: tuple[bool, ...]
    context: int | None
    rope: frozenset[str]
    attention: str | None

    @classmethod
    def of(cls, model: Any) -> ModelFacts:
        """Read a model's configuration, which may change: nothing is kept."""
        base = unwrap(model)
        text = text_config(base)
        n_layers = text.num_hidden_layers
        uneven = text.__dict__.get("_heterogeneity_spec") is not None  # fields that differ from layer to layer
        layers = list(text.per_layer_config) if uneven else [text] * n_layers
        stated = _first(text, ("layer_types", "attention_layers"))
        kinds = stated or ["sliding_attention"] * n_layers  # where there is a window
        embeddings: Any = base.get_input_embeddings()
        rope = getattr(text, "rope_parameters", None) or {}
        return cls(
            name=base.config.name_or_path or type(base).__name__,
            n_layers=n_layers,
            width=getattr(text, "hidden_size", None) or embeddings.weight.shape[1],
            vocabulary=getattr(text, "vocab_size", None) or embeddings.weight.shape[0],
            windows=tuple(getattr(one, _WINDOWS.get(kind, ""), None) for one, kind in zip(layers, kinds, strict=True)),
            kinds=tuple(kinds),
            chunked=tuple(kind == "chunked_attention" for kind in kinds),
            context=_first(text, _CONTEXT),
            rope=frozenset(r["rope_type"] for r in (rope, *rope.values()) if isinstance(r, dict) and r.get("rope_type")),
            attention=getattr(base.config, "_attn_implementation", None),
        )


def text_config(model: Any) -> Any:
    """The configuration of a model's decoder: the model's own, or the part of it that tells of the text."""
    return model.config.get_text_config(decoder=True)


def stated_layers(model: Any) -> int:
    """The number of layers in a model's configuration."""
    return text_config(model).num_hidden_layers


def setting(model: Any, name: str, default: Any = None) -> Any:
    """One of the switches in a configuration that a call may override (`use_cache`, `output_attentions`, ..)."""
    return getattr(text_config(model), name, default)


def experts_chosen(layer: nn.Module, path: str, model: Any, index: int) -> int:
    """Experts of layer `index`, at `path` inside it, that a token is sent to, by the modules or else the configuration."""
    block = layer.get_submodule(path.rpartition(".")[0])
    for owner in (block, *block.children(), text_config(model)):
        for name in _CHOSEN:
            value = getattr(owner, name, None)
            value = value[min(index, len(value) - 1)] if isinstance(value, list | tuple) and value else value
            if isinstance(value, int) and value:
                return value
    return 1


def config_text(model: Any) -> str:
    """All that a model's configuration says, and its implementation of attention, as one text."""
    attention = getattr(text_config(model), "_attn_implementation", None)
    return f"{attention} {json.dumps(model.config.to_dict(), sort_keys=True, default=str)}"


def layer_settings(config: Any) -> str:
    """What a configuration says that a layer may compute by, as one text: not where it came from, nor its tokens."""
    told = {name: value for name, value in config.to_dict().items() if not _NO_LAYERS.search(name)}
    attention = getattr(config, "_attn_implementation", None)
    # The own function stands in for transformers' `sdpa`, and is put in its place where layers are compiled.
    return f"{'sdpa' if attention == OWN_ATTENTION else attention} {json.dumps(told, sort_keys=True, default=str)}"


def cached_window(cached: Any) -> int | None:
    """Tokens that a layer of a KV cache is made for; None for all."""
    held = getattr(cached, "sliding_window", None)
    return held if isinstance(held, int) else None


def use_eager(model: nn.Module) -> None:
    """Have every module of a model, whose configurations are its own, compute attention and experts eagerly."""
    for module in (model, *model.modules()):
        config: Any = getattr(module, "config", None)
        if is_config(config):
            config._attn_implementation_internal = config._experts_implementation_internal = "eager"
            for part in filter(is_config, config.__dict__.values()):
                part._attn_implementation_internal = "eager"


def note_untied(model: Any) -> None:
    """Have the configuration say that a model's head has weights of its own."""
    model.config.tie_word_embeddings = False


def config_numbers(config: Any, chosen: Callable[[str], bool]) -> set[int]:
    """Whole numbers in the fields of a configuration, and of those inside it, whose names are `chosen`."""
    found: set[int] = set()
    for name, value in config.__dict__.items():
        if is_config(value):
            found |= config_numbers(value, chosen)
        elif chosen(name):
            found |= _numbers(value)
    return found


def _numbers(value: Any) -> set[int]:
    if isinstance(value, list | tuple):
        return set().union(*map(_numbers, value))
    return {value} if isinstance(value, int) else set()


def is_config(value: Any) -> bool:
    """Whether a value is a configuration of transformers."""
    return hasattr(value, "get_text_config")


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)
