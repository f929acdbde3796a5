"""What a model was trained on: read from folders, put on models, found on views, and kept apart for adapters."""

from __future__ import annotations

import json

import pytest
import torch

from depthdial.hf.adapter import merged
from depthdial.hf.trained import note_training, prompts_of_folder, trained_on
from depthdial.hf.untouched import untouched
from depthdial.views.tokens.gates import GateConfig, TokenGates
from depthdial.views.view import quiet_view, view
from tests.tiny import tiny

RECORD = {"data": {"prompts": ["a1", "b2"]}}


@pytest.mark.parametrize(("file", "part"), [("depthdial.json", "training"), ("gates.json", "about")])
def test_a_folder_says_what_it_was_trained_on(tmp_path, file, part):
    (tmp_path / file).write_text(json.dumps({part: RECORD}))
    assert prompts_of_folder(tmp_path) == {"a1", "b2"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": 3}', '{"training": {"data": {"prompts": 5}}}', "{"])
def test_a_folder_that_does_not_say_loads_as_it_did(tmp_path, text):
    assert prompts_of_folder(tmp_path) == frozenset()
    (tmp_path / "depthdial.json").write_text(text)
    assert prompts_of_folder(tmp_path) == frozenset()


def test_a_model_and_its_views_know_and_their_weights_stay(weights_of, assert_same):
    model = tiny("llama")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    note_training(model, ())
    assert trained_on(model) == {}
    note_training(model, ["a1"])
    note_training(model, ["b2"])
    before = weights_of(model)
    assert trained_on(model) == trained_on(view(model, (0, 5))) == {"to train the model": {"a1", "b2"}}
    assert_same(before, weights_of(model))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_counts_while_it_is_on_and_for_good_once_it_is_merged(with_lora):
    model = with_lora(tiny("llama"))
    note_training(model, ["a1"])
    note_training(model, ["b2"], of_adapter=True)
    both = {"to train the model": {"a1"}, "to train the adapter": {"b2"}}
    assert trained_on(model) == trained_on(model.get_base_model()) == trained_on(view(model, (0, 5))) == both
    with untouched(model):
        assert trained_on(model) == {"to train the model": {"a1"}}
        assert trained_on(quiet_view(model, (0, 5))) == {"to train the model": {"a1"}}
    assert trained_on(merged(model)) == {"to train the model": {"a1", "b2"}}


def test_gates_know_what_they_learned_from(tmp_path):
    gates = TokenGates(GateConfig(6, 32), about=RECORD)
    assert gates.policy("sampled").trained_on == {"a1", "b2"}
    read = TokenGates.from_pretrained(gates.save_pretrained(tmp_path / "gates"))
    assert read.policy("argmax").trained_on == prompts_of_folder(tmp_path / "gates") == {"a1", "b2"}
    assert TokenGates(GateConfig(6, 32)).policy("sampled").trained_on == frozenset()
