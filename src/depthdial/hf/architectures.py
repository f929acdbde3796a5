"""Differences between Hugging Face architectures: where the layers are, and per-layer configuration.

The only file that knows transformers' names of modules; `facts` reads the other configuration fields.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depthdial.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# A layer and its attention find their slot of the KV cache by this attribute (`layer_id`: GPT-Neo).
LAYER_INDEX_ATTRIBUTES = ("layer_idx", "layer_id")

# Lists with one entry a layer. Cut by name and never by length alone: a list of L end-of-sequence ids looks the same.
_PER_LAYER_LISTS = (
    *(
        "activation_sparsity_pattern",
        "attention_layers",
        "block_configs",
        "indexer_types",
        "layer_rope_theta",
        "layer_types",
    ),
    *("mlp_layer_types", "moe_topk", "no_rope_layers", "num_attention_heads_per_layer", "num_key_value_heads_per_layer"),
    "sliding_windows",
)
# Lists of layer positions: every position moves to where its layer now is, or goes with it.
_LAYER_POSITION_LISTS = ("full_attn_idxs", "local_layer_ids", "mlp_only_layers", "moe_layers", "rope_scaling_layers")
# "The first n layers are dense": n becomes the number of those that are kept.
_PREFIX_COUNTS = ("first_k_dense_replace", "num_dense_layers")

_FINAL_NORMS = (
    *("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "layer_norm", "layernorm"),
    "output_layernorm",
)
_ATTENTION_KINDS = ("attention", "full_attention", "sliding_attention", "chunked_attention")

# What transformers calls a layer with, beside hidden states and mask: by token (n_sequences or 1, n_tokens, ..), by
# (sequence, head), and for the whole pass. Anything else that is a tensor is unknown to token routing.
PER_TOKEN_ARGUMENTS = ("position_ids", "position_embeddings")
PER_SEQUENCE_ARGUMENTS = ("alibi",)
SHARED_ARGUMENTS = ("position_bias", "cache_position")
_ROUTED_ATTENTION = ("sdpa", "eager")
# The attention of Depthdial's own views, which takes what `sdpa` takes (`hf.attention`).
OWN_ATTENTION = "depthdial"


@dataclass(frozen=True)
class DecoderStack:
    """Where a model keeps its decoder layers.

    Attributes:
        path: names from the model down to the `ModuleList`, such as ("model", "layers").
        layers: the list itself, L entries.
        norm: the final norm after the last layer, or None where the architecture has none there (OPT-350m).
    """

    path: tuple[str, ...]
    layers: nn.ModuleList
    norm: nn.Module | None

    @property
    def n_layers(self) -> int:
        return len(self.layers)


def unwrap(model: Any) -> PreTrainedModel:
    """The PreTrainedModel inside `model`: itself, or the base of a PEFT wrapper with its adapter layers in place.

    Raises:
        InputError: if it is neither, or if the PEFT method works outside the layers (prompt and prefix tuning).
    """
    from transformers import PreTrainedModel

    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        for method in model.peft_config.values():
            if method.is_prompt_learning:
                raise InputError(
                    f"A {method.peft_type.value} adapter lives outside the decoder layers, so it cannot follow a route: "
                    "use LoRA or another method that adapts the layers, or the model without it."
                )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is not a Hugging Face model: pass a decoder-only PreTrainedModel, such as "
            "dd.load gives."
        )
    return model


def layer_states(output: Any) -> Any:
    """The hidden states in what a decoder layer returns: some architectures return a tuple."""
    return output[0] if isinstance(output, tuple) else output


def decoder_stack(model: PreTrainedModel) -> DecoderStack:
    """The one stack of decoder layers of a model; InputError where every layer is not a decoder's with attention."""
    config = model.config.get_text_config(decoder=True)
    _refuse_unsupported(model, config)
    n_layers = getattr(config, "num_hidden_layers", 0)
    found = [(name, m) for name, m in _module_lists(model) if len(m) == n_layers and n_layers and _has_index(m[0])]
    if len(found) != 1:
        where = ", ".join(name for name, _ in found) or "none"
        raise InputError(
            f"{type(model).__name__} has no single stack of decoder layers (lists found: {where}): "
            "routes need a decoder-only model with attention in every layer."
        )
    name, layers = found[0]
    _refuse_encoder(model, config, layers[0])
    inside = model.get_submodule(name.rpartition(".")[0])._modules
    norm = next((inside[one] for one in _FINAL_NORMS if inside.get(one) is not None), None)
    return DecoderStack(tuple(name.split(".")), layers, norm)


def count_layers(model: Any) -> int:
    """L, the number of decoder layers of a model or PEFT-wrapped model."""
    return decoder_stack(unwrap(model)).n_layers


def cut_config(config: PreTrainedConfig, layers: Sequence[int]) -> dict[int, PreTrainedConfig]:
    """Copies of a model's configuration objects that describe only `layers`.

    Returns:
        id of each old object -> its new one: the top configuration, and every configuration inside it.
    """
    from transformers import PreTrainedConfig

    copies: dict[int, Any] = {}
    copy.deepcopy(config, copies)  # the copier's own memo says which copy stands for which object
    text = config.get_text_config(decoder=True)
    _cut(copies[id(text)], layers, text.num_hidden_layers)
    return {old: new for old, new in copies.items() if isinstance(new, PreTrainedConfig)}


def _cut(config: PreTrainedConfig, layers: Sequence[int], n_layers: int) -> None:
    fields, place = config.__dict__, {old: new for new, old in enumerate(layers)}
    per_layer = fields.pop("_heterogeneity_spec", None)  # fields that differ from layer to layer (`per_layer_config`)
    if fields.get("decoder_sparse_step"):
        # "Every n-th layer has experts" (Qwen-MoE) no longer holds once layers move: name the dense ones instead.
        step, named = fields["decoder_sparse_step"], fields.get("mlp_only_layers") or ()
        fields["mlp_only_layers"] = [i for i in range(n_layers) if i in named or (i + 1) % step]
        fields["decoder_sparse_step"] = 1
    for name in _PER_LAYER_LISTS:
        value = fields.get(name)
        if isinstance(value, list | tuple) and len(value) == n_layers:
            fields[name] = type(value)(value[i] for i in layers)
    for name in _LAYER_POSITION_LISTS:
        value = fields.get(name)
        if isinstance(value, list | tuple):
            fields[name] = type(value)(place[i] for i in value if i in place)
    for name in _PREFIX_COUNTS:
        if isinstance(fields.get(name), int):
            fields[name] = sum(i < fields[name] for i in layers)
    if "attention_types" in fields and "attention_layers" in fields:  # GPT-Neo spells its list as [[kinds, repeats], ..]
        fields["attention_types"] = [[list(fields["attention_layers"]), 1]]
    fields[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    if config.num_hidden_layers != len(layers):  # a property over other fields (ProphetNet)
        raise InputError(
            f"{type(config).__name__} cannot describe a model of {len(layers)} layers: use another decoder-only model."
        )
    if per_layer is not None:
        moved = {place[i]: other for i, other in per_layer.per_layer_overrides.items() if i in place}
        config.per_layer_config = moved  # type: ignore[attr-defined]


def why_not_saved(model: PreTrainedModel) -> str | None:
    """Why a folder of this view could not be loaded again as the same model; None if it can.

    Some layers are built by their place in the whole model (GPT-2's attention scaled by the layer's number, experts in
    every other layer). A view runs the very modules of its base and is right all the same, but a configuration cannot say
    so. Builds the model that the saved configuration describes, without weights, and compares the layers.
    """
    from transformers.initialization import no_init_weights

    try:
        config = type(model.config).from_dict(model.config.to_dict())
    except Exception as error:  # whatever the checks of this architecture's configuration raise
        return f"transformers cannot read its configuration back ({one_line(error)})"
    ours, theirs = (c.get_text_config(decoder=True).__dict__ for c in (model.config, config))
    changed = next((name for name in _PER_LAYER_LISTS if ours.get(name) != theirs.get(name)), None)
    if changed is not None:
        return f"its configuration does not allow these {changed}: {', '.join(map(str, ours[changed]))}"
    with torch.device("meta"), no_init_weights():
        rebuilt = type(model)(config)
    is_quantized = getattr(model, "hf_quantizer", None) is not None  # then the modules differ until weights are loaded
    pairs = zip(decoder_stack(model).layers, decoder_stack(rebuilt).layers, strict=True)
    for index, (layer, again) in enumerate(pairs):
        name = _first_difference(layer, again, compare_weights=not is_quantized)
        if name is not None:
            return f"{name} of its layer {index} depends on the place in the whole model, which a saved one would lose"
    return None


def check_token_routing(model: PreTrainedModel) -> None:
    """InputError if a model's layers cannot be run for some tokens of a pass."""
    config = model.config.get_text_config(decoder=True)
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if attention not in (*_ROUTED_ATTENTION, OWN_ATTENTION):
        raise InputError(
            f"Token routing needs masks of its own, which {attention} attention does not take: load the model with "
            f"attn_implementation={' or '.join(map(repr, _ROUTED_ATTENTION))}."
        )
    if config.model_type == "gpt_neo":  # whose attention does not look at positions
        raise InputError(
            f"{type(model).__name__} masks by a token's place in the pass, so its layers cannot be run for some tokens: use "
            "a route for whole sequences (dd.view)."
        )


def has_hiding_masks(model: PreTrainedModel) -> bool:
    """Whether a model's boolean masks are true where a slot is hidden: elsewhere they are true where one is seen."""
    return model.config.get_text_config(decoder=True).model_type == "mpt"


def longest_routed(model: PreTrainedModel) -> int | None:
    """Tokens up to which layers can be run for some tokens of a pass; None for any number.

    Llama 4 scales the attention of its layers without rotation by a token's place in the call, from `floor_scale` on.
    """
    config = model.config.get_text_config(decoder=True)
    is_scaled = getattr(config, "attn_temperature_tuning", False) and not all(getattr(config, "no_rope_layers", ()))
    return int(config.floor_scale) - 1 if is_scaled else None


def head_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states, (.., width) -> (.., vocabulary), as if they came out of the model's last layer.

    By the model's own final norm and forward: scaled, capped and projected as its logits are.
    """
    if model.get_output_embeddings() is None:
        raise InputError(f"{type(model).__name__} has no output head, so a token's confidence cannot be known.")
    stack = decoder_stack(model)
    project = getattr(model.get_submodule(".".join(stack.path[:-1])), "project_out", None)  # OPT-350m
    last = hidden.reshape(1, -1, hidden.shape[-1])
    last = last if stack.norm is None else stack.norm(last)
    top = _with_states(model, stack.path[:-1], last if project is None else project(last))
    logits = type(model).forward(top, inputs_embeds=last, use_cache=False, return_dict=True).logits
    return logits.reshape(*hidden.shape[:-1], -1)


class _States(nn.Module):
    """Stands where a model has its decoder: whatever comes in, it gives itself, an output with these last hidden states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.last_hidden_state = states

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        # Outputs have fields by architecture (cross_attentions, router_logits, ..): none of them is at hand.
        return None if not name.startswith("_") else super().__getattr__(name)


def _with_states(module: nn.Module, path: Sequence[str], states: torch.Tensor) -> nn.Module:
    """A shell of `module` whose sub-module at `path` gives `states`; `module` stays as it is."""
    if not path:
        return _States(states)
    shell = object.__new__(type(module))
    child = _with_states(module.get_submodule(path[0]), path[1:], states)
    state = {**module.__dict__, "_modules": {**module._modules, path[0]: child}}
    state.pop("forward", None)  # a view's own
    object.__setattr__(shell, "__dict__", state)
    return shell


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward takes `argument` by name (`position_ids`, `logits_to_keep`, ..)."""
    return argument in inspect.signature(type(model).forward).parameters


def _module_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every ModuleList that is not inside another one, so that a layer's own experts do not count."""
    pending: list[tuple[str, nn.Module]] = [("", model)]
    while pending:
        prefix, module = pending.pop()
        for name, child in module._modules.items():
            if isinstance(child, nn.ModuleList) and len(child):
                yield prefix + name, child
            elif child is not None:
                pending.append((f"{prefix}{name}.", child))


def _has_index(layer: nn.Module) -> bool:
    return any(name in module.__dict__ for module in layer.modules() for name in LAYER_INDEX_ATTRIBUTES)


def _first_difference(layer: nn.Module, again: nn.Module, *, compare_weights: bool) -> str | None:
    if compare_weights and (only_one := layer.state_dict().keys() ^ again.state_dict().keys()):
        return min(only_one)
    modules = dict(again.named_modules())
    for prefix, module in layer.named_modules():
        theirs = modules[prefix].__dict__ if prefix in modules else {}
        for name, value in module.__dict__.items():
            is_built = name in theirs and not name.startswith("_") and name not in ("training", "gradient_checkpointing")
            is_plain = value is None or isinstance(value, bool | int | float | str)
            if is_built and is_plain and value != theirs[name]:
                return f"{prefix}.{name}".lstrip(".")
    return None


def _refuse_encoder(model: PreTrainedModel, config: PreTrainedConfig, layer: nn.Module) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # A decoder's cross-attention is not causal either, so that one causal module is enough. Those without the flag
    # (RoFormer, XLM) are known by their kind.
    flags = {module.__dict__["is_causal"] for module in layer.modules() if "is_causal" in module.__dict__}
    masked_kind = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if (flags and True not in flags) or (not flags and masked_kind):
        raise InputError(
            f"{type(model).__name__} is not a decoder, since its tokens attend to later ones: routes need a decoder-only "
            "model, such as Llama or GPT-2."
        )


def _refuse_unsupported(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    name = type(model).__name__
    # A decoder taken out of such a model (BartForCausalLM) still counts the encoder's layers as the model's.
    is_half = all(isinstance(config.__dict__.get(f"{half}_layers"), int) for half in ("encoder", "decoder"))
    if is_half or getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder model: routes need a decoder-only model, such as Llama or GPT-2.")
    kinds = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "layers_block_type", None) or ())
    other = sorted(str(kind) for kind in kinds - set(_ATTENTION_KINDS))
    if other or getattr(model, "_is_stateful", False):
        what = f" ({', '.join(other)})" if other else ""
        raise InputError(
            f"{name} is a hybrid or recurrent stack{what}: routes need a decoder-only model with attention in every layer."
        )
    if getattr(config, "cross_attention_layers", None) or getattr(config, "cross_layer_interval", None):
        raise InputError(
            f"{name} has cross-attention to images at fixed places between its layers, which a route would move: "
            "use a decoder-only model or one that puts images among the tokens, such as LLaVA."
        )
    if (
        getattr(config, "num_kv_shared_layers", 0)
        or getattr(config, "hidden_size_per_layer_input", 0)
        or "shared" in (getattr(config, "indexer_types", None) or ())
    ):
        raise InputError(
            f"The layers of {name} share keys and values, chosen tokens or embeddings with one another, so none can be "
            "skipped alone: use a decoder-only model whose layers stand for themselves."
        )
