"""The facts of every architecture, held against its modules and what its layers see."""

from __future__ import annotations

import pytest

from depthdial.hf.facts import ModelFacts, config_numbers
from tests.tiny import N_LAYERS, REPRESENTATIVES, WINDOW, shared, tiny


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "gemma4_unified_text"])
def test_sizes_are_those_of_the_modules(name: str) -> None:
    model = shared(name)
    facts = ModelFacts.of(model)
    assert (facts.n_layers, facts.vocabulary) == (N_LAYERS, len(model.get_input_embeddings().weight))
    assert facts.width == model.config.hidden_size


def test_windows_are_by_layer_and_chunks_are_told_from_windows() -> None:
    assert ModelFacts.of(shared("mistral")).windows == (WINDOW,) * 6
    assert set(ModelFacts.of(shared("gemma2")).windows) == {WINDOW, None}
    assert ModelFacts.of(shared("gpt_neo")).windows == (WINDOW, None, WINDOW, WINDOW, None, WINDOW)
    assert any(ModelFacts.of(shared("llama4_text")).chunked)
    assert not any(ModelFacts.of(shared("gemma2")).chunked)


def test_context_and_rotation() -> None:
    assert ModelFacts.of(shared("mpt")).context == 64
    assert ModelFacts.of(shared("bloom")).context is None
    assert ModelFacts.of(shared("llama")).rope == {"default"}
    assert ModelFacts.of(shared("gpt2")).rope == frozenset()
    scaled = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert ModelFacts.of(scaled).rope == {"dynamic"}


def test_numbers_are_found_in_lists_and_by_name() -> None:
    config = tiny("llama").config
    config.eos_token_id = [5, 6]
    assert {5, 6} <= config_numbers(config, lambda name: "token" in name)
