"""The facts of every architecture, held against what its layers cache and see."""

from __future__ import annotations

import pytest
import torch

from depthdial.hf.cache_name import cache_of
from depthdial.hf.facts import ModelFacts, config_numbers
from tests.tiny import REPRESENTATIVES, WINDOW, shared, tiny


@pytest.mark.parametrize("name", [name for name in (*REPRESENTATIVES, "gemma4_unified_text") if name != "falcon"])
def test_heads_are_those_of_the_cache_and_sizes_those_of_the_modules(name: str) -> None:
    model = shared(name)
    facts = ModelFacts.of(model)
    layers = cache_of(model(torch.tensor([[3, 4]]), use_cache=True)).layers
    assert [layer.keys.shape[1::2] for layer in layers] == list(zip(facts.kv_heads, facts.head_dim, strict=True))
    weight = model.get_input_embeddings().weight
    assert (facts.n_layers, facts.vocabulary) == (len(layers), len(weight))
    assert facts.width == model.config.hidden_size


def test_windows_are_by_layer_and_chunks_are_told_from_windows() -> None:
    assert ModelFacts.of(shared("mistral")).windows == (WINDOW,) * 6
    assert set(ModelFacts.of(shared("gemma2")).windows) == {WINDOW, None}
    assert ModelFacts.of(shared("gpt_neo")).windows == (WINDOW, None, WINDOW, WINDOW, None, WINDOW)
    assert any(ModelFacts.of(shared("llama4_text")).chunked)
    assert not any(ModelFacts.of(shared("gemma2")).chunked)


def test_context_experts_and_rotation() -> None:
    assert ModelFacts.of(shared("mpt")).context == 64
    assert ModelFacts.of(shared("bloom")).context is None
    assert ModelFacts.of(shared("mixtral")).experts == 4
    assert ModelFacts.of(shared("llama")).experts == 0
    assert ModelFacts.of(shared("llama")).rope == {"default"}
    assert ModelFacts.of(shared("gpt2")).rope == frozenset()
    scaled = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert ModelFacts.of(scaled).rope == {"dynamic"}


def test_end_tokens_are_the_generation_settings() -> None:
    model = tiny("llama")
    model.generation_config.eos_token_id = [2, 7]
    assert ModelFacts.of(model).end_tokens == (2, 7)
    model.generation_config.eos_token_id = None
    assert ModelFacts.of(model).end_tokens == ()


def test_numbers_are_found_in_lists_and_by_name() -> None:
    config = tiny("llama").config
    config.eos_token_id = [5, 6]
    assert {5, 6} <= config_numbers(config, lambda name: "token" in name)
