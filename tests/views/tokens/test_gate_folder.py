"""A folder of gates on a model: which model it must be, and that nothing changes it."""

from __future__ import annotations

import pytest
import torch

from depthdial.errors import InputError
from depthdial.hf.weights import weights_hash
from depthdial.views.tokens.gate_folder import load_gates
from depthdial.views.tokens.gates import GateBase, GateConfig, TokenGates
from depthdial.views.tokens.view import token_view
from depthdial.views.view import quiet_view
from tests.tiny import tiny


@pytest.fixture
def base():
    return tiny("llama")


@pytest.fixture
def folder(base, tmp_path):
    gates = TokenGates(GateConfig(6, 32), GateBase("tiny", weights_hash(base), "float32"))
    return gates.save_pretrained(tmp_path / "gates")


def test_gates_alone_leave_the_model_as_it_is(base, folder, weights_of, assert_same) -> None:
    before = weights_of(base)
    model, gates = load_gates(folder, base)
    assert model is base and not any(p.requires_grad for p in gates.parameters())
    token_view(model, gates.policy("sampled"))
    assert_same(weights_of(base), before)


def test_an_adapter_goes_on_a_view(base, folder, with_lora, weights_of, assert_same) -> None:
    with_lora(quiet_view(base, range(6))).save_pretrained(folder)
    base.requires_grad_(True)
    before = weights_of(base)
    model, _ = load_gates(folder, base)
    assert_same(weights_of(base), before)
    assert all(p.requires_grad for p in base.parameters()) and not hasattr(base, "peft_config")
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, base(ids).logits)
    with pytest.raises(InputError, match="bring an adapter of their own: load the model without one"):
        load_gates(folder, model)


def test_a_known_hash_is_not_taken_again(base, folder, monkeypatch) -> None:
    monkeypatch.setattr("depthdial.hf.adapter.weights_hash", None)
    load_gates(folder, base, weights_hash=weights_hash(base))


def test_other_models_are_refused(base, folder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"6 layers of width 32 \(tiny\), and this one has 5 of width 32"):
        load_gates(folder, tiny("llama", 5))
    with pytest.raises(InputError, match=r"are for tiny \(float32, weights \w{12}\), and this model holds others \(float32"):
        load_gates(folder, tiny("llama", seed=1))
    load_gates(folder, tiny("llama").bfloat16())  # rounded: cannot be told from other weights
    with pytest.raises(InputError, match="holds no gates"):
        load_gates(tmp_path, base)
    unknown = TokenGates(GateConfig(6, 32)).save_pretrained(tmp_path / "unknown")
    load_gates(unknown, tiny("llama", seed=1))
