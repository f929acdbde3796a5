"""Kinds of layers: the same where a compiled function would compute the same, and none where that cannot be said."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.layer_kinds import layer_kind
from depthdial.engine.session import Session
from depthdial.hf.architectures import decoder_stack
from depthdial.views.snapshot import snapshot
from tests.tiny import shared, tiny


def kinds(model) -> list[str | None]:
    return [layer_kind(layer) for layer in decoder_stack(snapshot(model)).layers]


def pattern(model) -> list[int]:
    found = kinds(model)
    assert None not in found
    return [found.index(kind) for kind in found]


@pytest.mark.parametrize("name", ["llama", "phi3", "opt", "gpt2", "mixtral"])
def test_layers_alike_are_of_one_kind(name):
    assert pattern(shared(name)) == [0] * 6


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3"])
def test_attention_of_two_kinds(name):
    assert pattern(shared(name)) == [0, 1, 0, 0, 1, 0]


def test_layers_with_and_without_experts():
    assert pattern(shared("deepseek_v3")) == [0, 0, 2, 2, 2, 2]


def test_layers_that_scale_by_their_place_are_of_kinds_of_their_own():
    assert pattern(shared("gpt2_scaled")) == list(range(6))


def test_other_weights_of_the_same_model_are_of_the_same_kind():
    assert kinds(tiny("llama", seed=1)) == kinds(shared("llama"))
    assert kinds(tiny("llama", n_layers=5))[0] is not None


@pytest.mark.parametrize(
    "other", [{"hidden_act": "gelu"}, {"rms_norm_eps": 1e-5}, {"intermediate_size": 64}, {"attention_bias": True}], ids=str
)
def test_another_setting_is_another_kind(other):
    assert set(kinds(tiny("llama", **other))).isdisjoint(kinds(shared("llama")))


def test_another_dtype_is_another_kind_and_fp16_none():
    assert set(kinds(tiny("llama").to(torch.bfloat16))).isdisjoint({*kinds(shared("llama")), None})
    assert kinds(tiny("llama").to(torch.float16)) == [None] * 6


def test_eager_attention_is_another_kind():
    model = tiny("llama")
    model.set_attn_implementation("eager")
    assert set(kinds(model)).isdisjoint({*kinds(shared("llama")), None})


def test_a_session_runs_layers_of_the_same_kind(tokenizer):
    model = tiny("llama", hidden_size=256, intermediate_size=512)  # large enough to be packed
    layers = decoder_stack(Session.of(model, tokenizer).model).layers
    assert [layer_kind(layer) for layer in layers] == kinds(model)


def test_adapters_count(with_lora):
    adapted = with_lora(tiny("llama"))
    found = kinds(adapted)
    assert pattern(adapted) == [0] * 6
    assert found[0] not in kinds(shared("llama"))
    assert kinds(with_lora(tiny("llama"), scale=2.0))[0] not in (found[0], None)
    off = [layer_kind(layer) for layer in decoder_stack(snapshot(adapted, adapters=False)).layers]
    assert set(off).isdisjoint({*found, None})


def test_what_cannot_be_shared_has_no_kind():
    model = tiny("llama")
    layers = decoder_stack(model).layers
    layers[1].register_forward_pre_hook(lambda *_: None)
    layers[2].__dict__["forward"] = lambda *_, **__: None
    layers[3].secret = [torch.ones(1)]  # type: ignore[assignment]
    layers[4].train()
    found = [layer_kind(layer) for layer in layers]
    assert [kind is None for kind in found] == [False, True, True, True, True, False]
