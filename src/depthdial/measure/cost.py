"""Theoretical cost of a route: layers, FLOPs and bytes, counted while its modules run. Never seconds.

A multiply-add counts as two FLOPs; norms, activations and the softmax are left out, as is usual. The head, the embeddings
and the prompt stand apart, for a route changes none of them. Cost counts response tokens (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.hf.architectures import decoder_stack, unwrap
from depthdial.measure.facts import LayerCost, held_bytes, layer_costs, matrix_size
from depthdial.routes import Route


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
                layer.kv_bytes_per_token * min(prompt_tokens + max(new_tokens - 1, 0), layer.cached_tokens or 10**12)
                for layer in run
            ),
        )


def model_cost(model: Any) -> ModelCost:
    """Count what each layer, the head and the embeddings of a model cost.

    Counted while a twin of the model runs without weights (see `layer_costs`): the model computes nothing.

    Raises:
        InputError: if the model has no single stack of decoder layers, or does not run on token ids.

    Example:
        >>> cost = dd.model_cost(model)
        >>> route = dd.Route.parse("uls:50%", n_layers=6)
        >>> cost.of(route, prompt_tokens=10, new_tokens=5).layers
        3
    """
    base = unwrap(model)
    decoder_stack(base)  # refuses what has none
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    return ModelCost(
        layers=layer_costs(base),
        head_flops_per_token=2 * matrix_size(head) if head is not None else 0.0,
        head_bytes=held_bytes(head) if head is not None else 0.0,
        embedding_bytes=held_bytes(embedding),
    )


def _flops(layer: LayerCost, tokens_in_sight: range) -> float:
    pairs = int(layer.in_sight(np.asarray(tokens_in_sight, dtype=np.int64)).sum())
    return layer.flops_per_token * len(tokens_in_sight) + layer.flops_per_token_pair * pairs
