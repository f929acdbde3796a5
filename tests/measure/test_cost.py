from __future__ import annotations

import itertools

import pytest
import torch

from depthdial.measure.cost import model_cost
from depthdial.routes import Route


def brute_flops(model, layers, prompt_tokens, new_tokens):
    """Token by token, matrix by matrix."""
    config = model.config
    total = 0
    for step in range(1, new_tokens):
        for i in layers:
            total += sum(2 * p.numel() for p in model.model.layers[i].parameters() if p.ndim == 2)
            total += 4 * (prompt_tokens + step) * config.num_attention_heads * config.head_dim
    return total


def test_a_llama_counted_by_hand(model):
    route = Route((0, 2, 5), 6)
    cost = model_cost(model).of(route, prompt_tokens=7, new_tokens=5)
    assert cost.layers == 3
    assert cost.decode_flops == brute_flops(model, route.layers, 7, 5)
    assert cost.prompt_flops == brute_flops(model, range(6), 0, 8)
    assert cost.head_flops == 5 * 2 * 32 * model.config.vocab_size
    assert cost.weight_bytes == 3 * sum(4 * p.numel() for p in model.model.layers[0].parameters())
    assert cost.kv_bytes == 3 * (7 + 4) * 2 * 2 * 8 * 4
    assert cost.head_bytes == cost.embedding_bytes == 4 * 32 * model.config.vocab_size


def test_cost_is_affine_in_the_layers_and_free_for_one_token(model):
    costs = model_cost(model)
    totals = [costs.of(Route(tuple(range(k)), 6), prompt_tokens=3, new_tokens=4).decode_flops for k in range(1, 7)]
    assert len({b - a for a, b in itertools.pairwise(totals)}) == 1
    assert costs.of(Route((0,), 6), prompt_tokens=3, new_tokens=1).decode_flops == 0


def test_a_prompt_on_the_route_costs_only_the_route(model):
    costs, route = model_cost(model), Route((1, 4), 6)
    full = costs.of(route, prompt_tokens=9, new_tokens=2).prompt_flops
    assert costs.of(route, prompt_tokens=9, new_tokens=2, prompt_route=route).prompt_flops == pytest.approx(full / 3)


def test_of_experts_only_the_chosen_count():
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=20, num_key_value_heads=1, num_local_experts=8, num_experts_per_tok=2, head_dim=8, **shape
    )
    torch.manual_seed(0)
    layer = model_cost(MixtralForCausalLM(config)).layers[0]
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    router, expert = 16 * 8, 3 * 16 * 24
    assert layer.flops_per_token == 2 * (attention + router + 2 * expert)


def test_a_sliding_window_caps_attention_and_cache():
    from transformers import MistralConfig, MistralForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=20, num_key_value_heads=1, head_dim=8, sliding_window=4, **shape)
    costs = model_cost(MistralForCausalLM(config))
    assert costs.layers[0].window_tokens == 4
    route = Route((0,), 2)
    at_10, at_11 = (costs.of(route, prompt_tokens=10, new_tokens=n) for n in (2, 3))
    assert at_11.decode_flops == 2 * at_10.decode_flops  # every later token sees as many
    assert at_10.kv_bytes == at_11.kv_bytes == (4 - 1) * 2 * 8 * 4


def test_gpt2_convolutions_count_as_matrices():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    layer = model_cost(GPT2LMHeadModel(config)).layers[1]
    assert layer.flops_per_token == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert layer.kv_bytes_per_token == 2 * 16 * 4
