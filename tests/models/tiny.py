"""Tiny random models of many architectures, and the same models with layers cut out by hand.

Not a test: `tiny("qwen3")` for any test that needs a decoder; `cut_by_hand` is the yardstick of the views' own tests and
so writes down what each configuration says per layer on its own, without the package's help.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCAB = 96
N_LAYERS = 6
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 4  # tokens; less than any sequence of the tests, so that a layer with the wrong mask shows

PerLayer = Callable[[Sequence[int]], dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """A configuration of a model of given layers of a (six-layer) whole.

    Attributes:
        model_type: transformers' name of it.
        fields: what its configuration says beside the sizes.
        per_layer: what its configuration says about a model made of just these layers of the whole, in this order.
        keeps_places: its layers depend on their place in the whole in a way that a configuration cannot say.
    """

    model_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    per_layer: PerLayer = lambda layers: {}
    keeps_places: bool = False


def _attention_kinds(layers: Sequence[int]) -> dict[str, Any]:
    return {"layer_types": ["full_attention" if i % 3 == 1 else "sliding_attention" for i in layers]}


def _sparse_from(n_dense: int, name: str) -> PerLayer:
    return lambda layers: {name: sum(i < n_dense for i in layers)}


def _mlp_kinds(layers: Sequence[int]) -> dict[str, Any]:
    return {"mlp_layer_types": ["dense" if i in (0, 2) else "sparse" for i in layers]}


def _qwen_sparsity(layers: Sequence[int]) -> dict[str, Any]:
    # Of the whole: experts in every second layer (1, 3, 5) except 3.
    if len(layers) == N_LAYERS:
        return {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    return {"decoder_sparse_step": 1, "mlp_only_layers": [new for new, i in enumerate(layers) if i not in (1, 5)]}


def _no_rope(layers: Sequence[int]) -> dict[str, Any]:
    return {**_attention_kinds(layers), "no_rope_layers": [int(i not in (1, 2)) for i in layers]}


def _gpt_neo_kinds(layers: Sequence[int]) -> dict[str, Any]:
    return {"attention_types": [[["global" if i % 3 == 1 else "local"], 1] for i in layers]}


_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SLIDING = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}
_LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, **_EXPERTS,
}  # fmt: skip

_TABLE: dict[str, Architecture] = {
    "llama": Architecture("llama"),
    "mistral": Architecture("mistral", _SLIDING),
    "qwen2": Architecture("qwen2", _SLIDING, _attention_kinds),
    "qwen3": Architecture("qwen3", _SLIDING, _attention_kinds),
    "gemma2": Architecture("gemma2", _SLIDING, _attention_kinds),
    "gemma3_text": Architecture("gemma3_text", _SLIDING, _attention_kinds),
    "phi3": Architecture("phi3", _SLIDING),
    "smollm3": Architecture("smollm3", _SLIDING, _no_rope),
    "gpt_neox": Architecture("gpt_neox", {"rotary_pct": 0.5}),
    "falcon": Architecture("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": Architecture("falcon", {"alibi": True, "new_decoder_architecture": False, "bias": True}),
    "mixtral": Architecture("mixtral", {**_SLIDING, **_EXPERTS}),
    "qwen3_moe": Architecture("qwen3_moe", {**_SLIDING, **_EXPERTS}),
    "qwen3_moe_sparse": Architecture("qwen3_moe", _EXPERTS, _qwen_sparsity),
    "opt": Architecture("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": True}),
    "gpt2": Architecture("gpt2"),
    "gpt2_scaled": Architecture("gpt2", {"scale_attn_by_inverse_layer_idx": True}, keeps_places=True),
    "gptj": Architecture("gptj", {"rotary_dim": 4}),
    "bloom": Architecture("bloom"),
    "olmo2": Architecture("olmo2"),
    "gpt_neo": Architecture("gpt_neo", {"window_size": WINDOW}, _gpt_neo_kinds),
    "cohere2": Architecture("cohere2", _SLIDING, _attention_kinds),
    "granite": Architecture("granite", {"residual_multiplier": 0.7, "attention_multiplier": 0.3}),
    "starcoder2": Architecture("starcoder2", _SLIDING),
    "stablelm": Architecture("stablelm"),
    "phi": Architecture("phi"),
    "deepseek_v3": Architecture("deepseek_v3", _LATENT, _sparse_from(2, "first_k_dense_replace")),
    "glm4_moe": Architecture("glm4_moe", _LATENT, _sparse_from(2, "first_k_dense_replace")),
    "exaone_moe": Architecture(
        "exaone_moe", {**_LATENT, **_SLIDING}, lambda layers: {**_attention_kinds(layers), **_mlp_kinds(layers)}
    ),
    "llama4_text": Architecture(
        "llama4_text",
        {**_EXPERTS, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 48},
        lambda layers: {
            "layer_types": ["full_attention" if i % 3 == 1 else "chunked_attention" for i in layers],
            "no_rope_layers": [int(i % 3 != 1) for i in layers],
            "moe_layers": [new for new, i in enumerate(layers) if i in (1, 4, 5)],
        },
    ),
    "gpt_oss": Architecture("gpt_oss", {**_SLIDING, **_EXPERTS}, _attention_kinds),
    "mpt": Architecture("mpt", {"max_seq_len": 64, "expansion_ratio": 2}),
    "ernie4_5_moe": Architecture(
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 2,
        },
        keeps_places=True,
    ),
    "modernbert-decoder": Architecture(
        "modernbert-decoder", {"local_attention": WINDOW, **_SLIDING}, _attention_kinds, keeps_places=True
    ),
    "diffllama": Architecture("diffllama", keeps_places=True),
}
ARCHITECTURES: list[str] = list(_TABLE)
KEEPS_PLACES: list[str] = [name for name, architecture in _TABLE.items() if architecture.keeps_places]


def tiny(name: str, n_layers: int = N_LAYERS, *, seed: int = 0, **config_overrides: Any) -> PreTrainedModel:
    """A random model of `ARCHITECTURES`: hidden size 32, 96 tokens, fp32, in eval mode, the same at every call.

    Its weights are far larger than a fresh model's, so that every layer tells.
    """
    model = _build(name, range(n_layers), config_overrides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


def cut_by_hand(model: PreTrainedModel, name: str, layers: Sequence[int]) -> PreTrainedModel:
    """A model of `layers` alone, with a copy of their weights: what `model` is once the others are cut out of it."""
    if _TABLE[name].keeps_places:
        return _cut_copy(model, layers, _TABLE[name].per_layer(layers))
    place = {str(old): str(new) for new, old in enumerate(layers)}
    weights = {}
    for key, value in model.state_dict().items():
        match = re.match(r"([^0-9]*\.)(\d+)(\..*)", key)  # the first number in a name is the layer's
        if match is None:
            weights[key] = value
        elif match[2] in place:
            weights[match[1] + place[match[2]] + match[3]] = value
    fresh = _build(name, layers, {})
    fresh.load_state_dict(weights, strict=True)
    return fresh


def _cut_copy(model: PreTrainedModel, layers: Sequence[int], per_layer: Mapping[str, Any]) -> PreTrainedModel:
    # No configuration builds these layers in their new places: the layers themselves are copied, and numbered anew.
    cut = copy.deepcopy(model)
    (stack,) = [m for m in cut.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    kept = [stack[old] for old in layers]
    del stack[:]
    for new, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new  # type: ignore[assignment]
        stack.append(layer)
    for key, value in {"num_hidden_layers": len(layers), **per_layer}.items():
        setattr(cut.config, key, value)
    return cut


def _build(name: str, layers: Sequence[int], overrides: Mapping[str, Any]) -> PreTrainedModel:
    architecture = _TABLE[name]
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[architecture.model_type]
    known = {f.name for f in dataclasses.fields(config_class)}
    fields = {**_SMALL, "num_hidden_layers": len(layers), **architecture.fields, **architecture.per_layer(layers)}
    spelled = {_spelled(config_class, known, key): value for key, value in fields.items()}
    given = {_spelled(config_class, known, key): value for key, value in overrides.items()}
    config = config_class(**{**{key: value for key, value in spelled.items() if key in known}, **given})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def _spelled(config_class: type[PreTrainedConfig], known: set[str], name: str) -> str:
    return name if name in known else config_class.attribute_map.get(name, name)
