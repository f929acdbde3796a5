"""What makes two views of a model the same function of its weights."""

from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.views.signature import signature
from depthdial.views.snapshot import snapshot
from tests.tiny import ARCHITECTURES, tiny


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "qwen3_moe", "opt"])
def test_snapshots_of_one_model_are_the_same(name):
    assert name in ARCHITECTURES
    model = tiny(name)
    assert signature(snapshot(model)) == signature(snapshot(model))


def test_numbers_of_weights_are_not_looked_at(model):
    before = signature(snapshot(model))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert signature(snapshot(model)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.model.norm, "variance_epsilon", 0.5),
        lambda model: model.model.layers[3].mlp.register_forward_hook(lambda *_: None),
        lambda model: setattr(model.model.layers[0].mlp, "forward", lambda states: states),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())),
        lambda model: setattr(model.model.layers[1].mlp, "act_fn", torch.nn.ReLU()),
        lambda model: setattr(model.config, "rms_norm_eps", 0.5),
        lambda model: model.double(),
    ],
)
def test_what_changes_results_changes_it(model, change):
    before = signature(snapshot(model))
    change(model)
    assert signature(snapshot(model)) != before


def test_an_adapter_is_another_function_and_so_is_its_scale(model, with_lora):
    plain = signature(snapshot(model))
    wrapped = with_lora(model)
    adapted = signature(snapshot(wrapped))
    assert len({plain, adapted, signature(snapshot(wrapped, adapters=False))}) == 3
    wrapped.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] = 7.0
    assert signature(snapshot(wrapped)) != adapted


def test_other_layers_are_another_function(model):
    assert signature(dd.view(model, "0,5")) != signature(dd.view(model, "0,4"))
