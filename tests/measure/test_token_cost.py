from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.measure.cost import ModelCost, model_cost
from depthdial.measure.facts import LayerCost
from depthdial.measure.token_cost import deciding_flops, skipped_layer_flops, token_cost
from depthdial.routes import Route
from depthdial.views.tokens.gates import GateConfig, TokenGates
from depthdial.views.tokens.policy import Bernoulli, ConfidenceExit, FunctionPolicy
from depthdial.views.tokens.view import TokenTrace, token_view
from tests.tiny import VOCAB, tiny

FULL = Route(tuple(range(6)), 6)
HERE = {"prompt_tokens": 5, "new_tokens": 9}


def everything(n_steps: int = 8) -> np.ndarray:
    return np.ones((n_steps, 6), dtype=bool)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_what_runs_as_a_route_does_costs_as_much(name):
    """With and without windows, which the later tokens of an answer outgrow."""
    cost = model_cost(tiny(name))
    for layers in [tuple(range(6)), (0, 2, 3, 5), (1,)]:
        ran, route = everything(), Route(layers, 6)
        ran[:, [i for i in range(6) if i not in layers]] = False
        ours, theirs = token_cost(cost, ran, **HERE, skipped_flops=0.0), cost.of(route, **HERE)
        assert ours.layers == len(layers)
        for field in ("decode_flops", "prompt_flops", "head_flops", "weight_bytes"):
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field))


def test_by_hand():
    """Two layers, one of them with a window of 3 tokens, and three tokens behind a prompt of two."""
    layers = (LayerCost(100.0, 10.0, None, 7.0, 1.0), LayerCost(100.0, 10.0, 3, 9.0, 1.0))
    ran = np.array([[True, True], [False, True], [True, False]])
    found = token_cost(ModelCost(layers, 0.0, 0.0, 0.0), ran, prompt_tokens=2, new_tokens=4, skipped_flops=40.0)
    # In sight of the tokens are 3, 4 and 5 tokens, of the second layer never more than 3.
    assert found.decode_flops == (100 + 30) + (100 + 50) + (100 + 30) + (100 + 30) + 2 * 40
    assert found.layers == pytest.approx(4 / 3) and found.weight_bytes == pytest.approx(2 / 3 * 7 + 2 / 3 * 9)


def test_an_answer_of_one_token_ran_nothing():
    cost = model_cost(tiny("llama"))
    assert token_cost(cost, everything(0), prompt_tokens=5, new_tokens=1, skipped_flops=9.0).decode_flops == 0


@pytest.mark.parametrize(
    ("name", "projections"),
    [
        ("llama", 32 * 32 + 2 * 32 * 16),  # queries, and keys and values of half as many heads
        ("gpt2", 32 * 3 * 32),  # one matrix for all three
        ("gpt_neox", 32 * 3 * 32),
    ],
)
def test_a_skipped_layer_costs_its_projections_where_keys_are_projected(name, projections):
    model = tiny(name)
    assert skipped_layer_flops(model, "project") == 2 * projections
    assert skipped_layer_flops(model, "drop") == skipped_layer_flops(model, "copy") == 0


@pytest.mark.parametrize("key_values", ["project", "drop", "copy"])
def test_torch_counts_the_same_in_a_real_answer(key_values):
    """Eager attention, whose products torch can count; the head apart."""
    model = tiny("llama")
    model.set_attn_implementation("eager")
    trace = TokenTrace()
    view = token_view(model, Bernoulli((1.0, 0.5, 0.5, 0.0, 0.5, 0.5), seed=3), key_values=key_values, trace=trace)
    with torch.no_grad():
        cache = cache_of(view(torch.tensor([[1, 5, 9, 4, 7]]), use_cache=True))
        trace.clear()
        with FlopCounterMode(display=False) as counter:
            for token in range(10, 18):
                view(torch.tensor([[token]]), **{cache_name(): cache}, use_cache=True)
    ran = torch.cat([one.ran for one in trace.passes], dim=1)[0].numpy()
    assert 0.2 < ran.mean() < 0.8
    cost = model_cost(model)
    ours = token_cost(cost, ran, **HERE, skipped_flops=skipped_layer_flops(model, key_values))
    # Older releases make the angles by a product of matrices, once a pass and not in a layer.
    angles = sum(sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith("rotary_emb"))
    assert ours.decode_flops == counter.get_total_flops() - angles - 8 * cost.head_flops_per_token


def test_what_deciding_costs():
    model = tiny("llama")
    assert deciding_flops(model, Bernoulli((0.5,) * 6), 9, 3.0) == 0
    assert deciding_flops(model, FunctionPolicy(lambda layer, hidden: None), 9, 3.0) == 0
    # A token that leaves before layer 3 was asked before layers 1, 2 and 3.
    assert deciding_flops(model, ConfidenceExit("margin", 0.5), 9, 3.0) == 8 * 3 * 2 * 32 * VOCAB
    assert deciding_flops(model, ConfidenceExit("saturation", 0.5, 2), 9, 3.0) == 8 * 2 * 6 * 32
    assert deciding_flops(model, ConfidenceExit("margin", 0.5), 1, 1.0) == 0


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_torch_counts_the_same_for_gates(kind):
    gates = TokenGates(GateConfig(6, 32, input="fixed", kind=kind, hidden_width=8))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for layer in gates.config.layers:
            gates.logits(layer, torch.randn(1, 1, 32))
    assert deciding_flops(tiny("llama"), gates.policy("sampled"), 9, 3.0) == 8 * counter.get_total_flops()
