from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.data.tasks import encode
from depthdial.engine.session import Session
from depthdial.measure.cost import model_cost
from depthdial.measure.latency import LayerCosts, layer_flops, layer_ms, layers_alike
from depthdial.routes import Route


@given(st.floats(0.01, 1e12), st.lists(st.floats(-5, 5), min_size=2, max_size=6, unique=True))
def test_equal_costs_order_as_harm_does(cost, harms):
    costs = LayerCosts("ms", (cost,) * len(harms), {})
    by_rate = sorted(range(len(harms)), key=lambda i: (costs.rate(harms[i], [i]), harms[i]))
    assert by_rate == sorted(range(len(harms)), key=lambda i: harms[i])
    assert costs.saved([0, 1]) == 2


def test_a_drop_that_does_good_is_the_better_the_more_it_saves():
    costs = LayerCosts("ms", (1.0, 2.0), {})
    assert costs.rate(-1.0, [1]) < costs.rate(-1.0, [0]) < costs.rate(0.0, [0]) < costs.rate(1.0, [1]) < costs.rate(1.0, [0])


def test_flops_are_those_of_one_more_token(model):
    costs = layer_flops(model, context_tokens=10)
    whole = model_cost(model).of(Route(tuple(range(6)), 6), prompt_tokens=9, new_tokens=2)
    assert costs.of(Route(tuple(range(6)), 6)) == whole.decode_flops
    assert costs.record([Route((0, 2), 6, "own:2")])["routes"] == {"own:2": pytest.approx(whole.decode_flops / 3)}


def test_time_is_every_layers_own_and_leaves_no_hook(model, tokenizer, small_task, weights_of, assert_same):
    import time

    slow = model.model.layers[3].mlp
    real = slow.forward
    slow.forward = lambda x: (time.sleep(0.004), real(x))[1]
    before = weights_of(model)
    costs = layer_ms(Session.of(model, tokenizer), encode(small_task, tokenizer)[0])
    assert max(range(6), key=lambda i: costs.by_layer[i]) == 3
    assert costs.by_layer[3] >= 4
    assert_same(before, weights_of(model))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.layers)


def test_a_layer_is_a_layer():
    assert layers_alike(3).of(Route((0, 2), 3)) == 2
