"""Theoretical cost of a route: layers, FLOPs and bytes, counted from the model's own modules. Never seconds.

A multiply-add counts as two FLOPs; norms, activations and the softmax are left out, as is usual. The head, the embeddings
and the prompt stand apart, for a route changes none of them. Cost counts response tokens (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from depthdial.models.architectures import decoder_stack, unwrap
from depthdial.models.weights import stored_bytes
from depthdial.routes import Route


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs.

    Attributes:
        flops_per_token: of its matrices, the experts that one token meets among them.
        flops_per_token_pair: of attention, for each earlier token that a token looks at.
        window_tokens: how far back it looks; None for all tokens.
        weight_bytes: read for one token (of experts: those that it meets).
        kv_bytes_per_token: added to the KV cache.
    """

    flops_per_token: float
    flops_per_token_pair: float
    window_tokens: int | None
    weight_bytes: float
    kv_bytes_per_token: float


@dataclass(frozen=True)
class RouteCost:
    """Theoretical cost of answering one prompt on a route.

    Attributes:
        layers: layers run for a response token (the mean over tokens, where they differ).
        decode_flops: of the layers, for all response tokens but the first, which the prompt's pass gives.
        prompt_flops: of the layers, for the prompt (at full depth or on the route, as it was run).
        head_flops: of the output head, once a generated token.
        weight_bytes: of the layers run, read for every decoding step.
        head_bytes, embedding_bytes: the same bytes where the two are tied.
        kv_bytes: of the KV cache at the end, the route's layers only.
    """

    layers: float
    decode_flops: float
    prompt_flops: float
    head_flops: float
    weight_bytes: float
    head_bytes: float
    embedding_bytes: float
    kv_bytes: float


@dataclass(frozen=True)
class ModelCost:
    """What every part of a model costs; see `model_cost`."""

    layers: tuple[LayerCost, ...]
    head_flops_per_token: float
    head_bytes: float
    embedding_bytes: float

    def of(self, route: Route, *, prompt_tokens: int, new_tokens: int, prompt_route: Route | None = None) -> RouteCost:
        """Cost of a response of `new_tokens` to a prompt of `prompt_tokens` that ran `prompt_route` (default: all)."""
        run = [self.layers[i] for i in route.layers]
        prompt_run = self.layers if prompt_route is None else [self.layers[i] for i in prompt_route.layers]
        steps = range(prompt_tokens + 1, prompt_tokens + new_tokens)  # tokens in sight of each later token
        return RouteCost(
            layers=len(run),
            decode_flops=sum(_flops(layer, steps) for layer in run),
            prompt_flops=sum(_flops(layer, range(1, prompt_tokens + 1)) for layer in prompt_run),
            head_flops=self.head_flops_per_token * new_tokens,
            weight_bytes=sum(layer.weight_bytes for layer in run),
            head_bytes=self.head_bytes,
            embedding_bytes=self.embedding_bytes,
            kv_bytes=sum(
                layer.kv_bytes_per_token * min(prompt_tokens + max(new_tokens - 1, 0), layer.window_tokens or 10**12)
                for layer in run
            ),
        )


def model_cost(model: Any) -> ModelCost:
    """Count what each layer, the head and the embeddings of a model cost.

    Raises:
        InputError: if the model has no single stack of decoder layers.
    """
    base = unwrap(model)
    config = base.config.get_text_config(decoder=True)
    layers = decoder_stack(base).layers
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    return ModelCost(
        layers=tuple(_layer_cost(layer, config, i) for i, layer in enumerate(layers)),
        head_flops_per_token=2 * _matrix_size(head) if head is not None else 0.0,
        head_bytes=_bytes(head) if head is not None else 0.0,
        embedding_bytes=_bytes(embedding),
    )


def _flops(layer: LayerCost, tokens_in_sight: range) -> float:
    pairs = _sum_capped(tokens_in_sight, layer.window_tokens)
    return layer.flops_per_token * len(tokens_in_sight) + layer.flops_per_token_pair * pairs


def _sum_capped(lengths: range, cap: int | None) -> int:
    if cap is None or not lengths or lengths[-1] <= cap:
        return sum(lengths)
    return sum(min(n, cap) for n in lengths)


def _layer_cost(layer: nn.Module, config: Any, index: int) -> LayerCost:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        kv_heads = 1  # Falcon and GPT-BigCode say so with a flag
    matrices, weight_bytes = _active_weights(layer, config)
    element_bytes = next((p.element_size() for p in layer.parameters() if p.is_floating_point()), 4)
    kinds = getattr(config, "layer_types", None)
    slides = kinds[index] == "sliding_attention" if kinds else bool(getattr(config, "sliding_window", None))
    return LayerCost(
        flops_per_token=2 * matrices,
        flops_per_token_pair=4 * heads * head_dim,
        window_tokens=getattr(config, "sliding_window", None) if slides else None,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=2 * kv_heads * head_dim * element_bytes,
    )


def _active_weights(layer: nn.Module, config: Any) -> tuple[float, float]:
    """(weights in matrices, bytes of all weights) that one token meets; experts count by the share that is chosen."""
    experts = next((n for n in (getattr(config, name, None) for name in _EXPERT_COUNTS) if n), None)
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    matrices = weight_bytes = 0.0
    for name, module in layer.named_modules():
        is_expert = experts and any(part == "experts" for part in name.split("."))
        share = chosen / experts if experts and is_expert else 1.0
        own = list(module.parameters(recurse=False))
        weight_bytes += share * sum(stored_bytes(p) for p in own)
        n_in, n_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(n_in, int) and isinstance(n_out, int):
            matrices += share * n_in * n_out  # packed (quantised) weights hide their shape
        else:
            matrices += share * sum(p.numel() for p in own if p.ndim >= 2)
    return matrices, weight_bytes


_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _matrix_size(module: nn.Module) -> float:
    return float(sum(p.numel() for p in module.parameters() if p.ndim >= 2))


def _bytes(module: nn.Module) -> float:
    return float(sum(stored_bytes(p) for p in module.parameters()))
