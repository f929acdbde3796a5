"""A folder of trained gates as a depth: the same tokens as their policy on the model that `load_gates` gives."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

import depthdial as dd
from depthdial.engine.depth import Depth
from depthdial.engine.gates import GatesDepth
from depthdial.errors import InputError
from depthdial.hf.weights import weights_hash
from depthdial.views.tokens.gate_folder import load_gates
from depthdial.views.tokens.gates import GateBase, GateConfig, TokenGates
from depthdial.views.view import quiet_view
from tests.tiny import tiny


@pytest.fixture
def base():
    return tiny("llama")


@pytest.fixture(params=["gates alone", "gates and an adapter"])
def folder(request, base, tmp_path, with_lora):
    gates = TokenGates(GateConfig(6, 32, run_bias=0.6), GateBase("tiny", weights_hash(base), "float32"))
    saved = gates.save_pretrained(tmp_path / "gates")
    if request.param != "gates alone":
        with_lora(quiet_view(base, range(6))).save_pretrained(saved)
    return saved


PROMPTS = ["the cat", "a dog and a bird"]


def test_a_folder_of_gates_generates_what_its_policy_does(base, tokenizer, folder, weights_of, assert_same) -> None:
    before = weights_of(base)
    found = dd.generate(base, tokenizer, PROMPTS, depth=folder, max_new_tokens=6)
    assert_same(weights_of(base), before)
    model, gates = load_gates(folder, base)
    expected = dd.generate(model, tokenizer, PROMPTS, depth=gates.policy("sampled"), max_new_tokens=6)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.layers_run for one in found] == [one.layers_run for one in expected]
    assert any(one.layers_run < 6 for one in found if one.layers_run is not None)


def test_a_sweep_measures_it_beside_the_full_model(base, tokenizer, folder, small_task) -> None:
    rows = dd.sweep(base, tokenizer, task=small_task, routes=["full", str(folder)], metrics=["kl"], progress=False)
    is_full = pc.equal(rows["route"], "full")
    full, gated = rows.filter(is_full), rows.filter(pc.invert(is_full))
    assert max(full["kl"].to_pylist()) == pytest.approx(0, abs=1e-6)
    assert min(gated["kl"].to_pylist()) > 0


def test_it_knows_what_it_is_for(base, tokenizer, folder) -> None:
    depth = Depth.parse(str(folder), base)
    assert isinstance(depth, GatesDepth) and depth.n_layers == 6 and depth.name == "gates:hidden:sampled"
    with pytest.raises(InputError, match="are for tiny"):
        dd.generate(tiny("llama", seed=1), tokenizer, "the cat", depth=folder)
    with pytest.raises(InputError, match="runs prompts at full depth"):
        dd.generate(base, tokenizer, "the cat", depth=folder, prompt_depth="route")
