"""Theoretical cost of token-wise execution, from what ran: layers, FLOPs of skipped tokens' keys, and of deciding.

As in `cost`, a multiply-add is two FLOPs, and seconds are never counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from depthdial.hf.architectures import unwrap
from depthdial.hf.facts import ModelFacts
from depthdial.measure.cost import ModelCost, RouteCost
from depthdial.routes import Route
from depthdial.views.tokens.cache import KeyValues
from depthdial.views.tokens.policy import FunctionPolicy, TokenPolicy
from depthdial.views.tokens.view import token_view


def token_cost(cost: ModelCost, ran: np.ndarray, *, prompt_tokens: int, new_tokens: int, skipped_flops: float) -> RouteCost:
    """Cost of a response behind a full-depth prompt.

    Args:
        ran: (n_steps, n_layers), true where a layer ran for a response token; the first token is the prompt's.
        skipped_flops: of a layer that a token skips, from `skipped_layer_flops`.

    Returns:
        As for a route; `layers` is the mean over the tokens, and so are the bytes of weights.
    """
    n_layers = len(cost.layers)
    full = cost.of(Route(tuple(range(n_layers)), n_layers), prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if not len(ran):
        return replace(full, decode_flops=0.0)
    sight = prompt_tokens + 1 + np.arange(len(ran))
    flops = np.stack(
        [one.flops_per_token + one.flops_per_token_pair * one.in_sight(sight) for one in cost.layers],
        axis=1,
    )
    rates = ran.mean(axis=0)
    return replace(
        full,
        layers=float(rates.sum()),
        decode_flops=float((flops * ran).sum() + skipped_flops * (~ran).sum()),
        weight_bytes=float(sum(rate * one.weight_bytes for rate, one in zip(rates, cost.layers, strict=True))),
    )


def skipped_layer_flops(model: Any, key_values: str) -> float:
    """What a token costs in a layer that it skips, by counting: mean over the layers.

    `project` runs a layer up to where its keys and values are written, queries included; the others compute nothing.
    """
    if key_values != "project":
        return 0.0
    base = unwrap(model)
    return (_flops_of_skipping(base, "project") - _flops_of_skipping(base, "drop")) / ModelFacts.of(base).n_layers


def deciding_flops(model: Any, policy: TokenPolicy, new_tokens: int, layers_run: float) -> float:
    """What the policy's decisions about a response cost, whose tokens run `layers_run` layers in the mean."""
    facts = ModelFacts.of(model)
    return policy.flops_per_token(facts.width, facts.vocabulary, layers_run) * max(new_tokens - 1, 0)


def _flops_of_skipping(base: Any, key_values: KeyValues) -> float:
    nobody = FunctionPolicy(lambda layer, hidden: torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device))
    view = token_view(base, nobody, key_values=key_values, prompt_depth="route")
    ids = torch.zeros(1, 1, dtype=torch.long, device=base.get_input_embeddings().weight.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        view(input_ids=ids)
    return float(counter.get_total_flops())
