"""Views and adapters: of adapted bases, with adapters of their own, and saved with them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthdial.errors import InputError
from depthdial.views.view import view
from tests.tiny import add_adapter, cut_by_hand, tiny
from tests.views.test_view import FULL, assert_same, states, written
from tests.views.test_view_shares import ROUTE, assert_same_copies, assert_untouched, copies, everything

peft = pytest.importorskip("peft")
pytestmark = [
    # PEFT asks for a name that transformers 5.23 is about to drop.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # PEFT's own settings for a mixture of experts name modules that "all-linear" leaves out.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]
NAMES = ["llama", "gemma2", "qwen3_moe", "gpt2", "falcon", "opt"]


def lora(name: str = "llama", **settings: Any) -> Any:
    """LoRA whose B is random too, so that it changes the model from the start."""
    settings = {"target_modules": "all-linear", "r": 4, "init_lora_weights": False, **settings}
    return peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2", **settings)


def adapted(name: str, **settings: Any) -> Any:
    torch.manual_seed(5)
    return peft.get_peft_model(tiny(name), lora(name, **settings))


def cut_adapted(model: Any, name: str, **settings: Any) -> Any:
    """The model cut by hand, with the adapter's tensors of the kept layers."""
    cut = peft.get_peft_model(cut_by_hand(tiny(name), name, ROUTE), lora(name, **settings))
    weights = {}
    for key, value in peft.get_peft_model_state_dict(model).items():
        match = re.match(r"([^0-9]*\.)(\d+)(\..*)", key)
        if match is None:
            weights[key] = value
        elif int(match[2]) in ROUTE:
            weights[f"{match[1]}{ROUTE.index(int(match[2]))}{match[3]}"] = value
    peft.set_peft_model_state_dict(cut, weights)
    assert {k: v.shape for k, v in peft.get_peft_model_state_dict(cut).items()} == {k: v.shape for k, v in weights.items()}
    return cut


def assert_close(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    # A merged adapter adds up in another order than one beside the weights.
    assert len(states(ours)) == len(states(theirs))
    for a, b in zip(states(ours), states(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_view_of_an_adapted_model_is_the_adapted_cut_model(name: str) -> None:
    model = adapted(name)
    cut = cut_adapted(model, name)
    before, values = everything(model), copies(model)
    shallow = view(model, ROUTE)
    assert isinstance(shallow, PreTrainedModel)
    assert_same(states(shallow), states(cut))
    assert_same(written(shallow), written(cut))
    assert (states(shallow)[0] - states(view(tiny(name), ROUTE))[0]).abs().max() > 0.05
    assert_untouched(before, model)
    assert_same_copies(values, model)


@pytest.mark.parametrize("name", NAMES)
def test_saving_the_view_of_an_adapted_model_writes_it_merged(name: str, tmp_path: Path) -> None:
    model = adapted(name)
    shallow = view(model, ROUTE)
    results = states(shallow)
    before, values, view_before = everything(model), copies(model), everything(shallow)
    shallow.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded, "peft_config")
    assert not list(tmp_path.glob("adapter*"))
    assert_close(loaded, shallow)
    assert_untouched(before, model)
    assert_same_copies(values, model)
    assert_untouched(view_before, shallow)
    assert_same(states(shallow), results)


def test_a_view_of_such_a_view_saves_its_own_layers(tmp_path: Path) -> None:
    model = adapted("llama")
    inner = view(view(model, (0, 2, 3, 5)), (1, 3))
    assert_same(states(inner), states(view(model, (2, 5))))
    inner.save_pretrained(tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), inner)


def test_a_view_keeps_the_adapters_state_of_when_it_was_made(tmp_path: Path) -> None:
    model = adapted("llama")
    plain, on = view(tiny("llama"), ROUTE), view(model, ROUTE)
    results = states(on)
    with model.disable_adapter():
        off = view(model, ROUTE)
        assert_same(states(on), results)
    assert_same(states(off), states(plain))
    off.save_pretrained(tmp_path)
    assert_same(states(AutoModelForCausalLM.from_pretrained(tmp_path)), states(plain))


def test_the_active_one_of_two_adapters(tmp_path: Path) -> None:
    model = adapted("llama")
    first = view(model, ROUTE)
    results = states(first)
    model.add_adapter("second", lora())
    model.set_adapter("second")
    second = view(model, ROUTE)
    assert (states(second)[0] - results[0]).abs().max() > 0.05
    assert_same(states(first), results)
    second.save_pretrained(tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), second)


def test_modules_trained_whole_beside_an_adapter(tmp_path: Path) -> None:
    model = adapted("llama", modules_to_save=["lm_head"], target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(-1.5)
    for expected in (view(model, ROUTE), None):
        if expected is None:
            with model.disable_adapter():
                expected = view(model, ROUTE)
            assert_same(states(expected), states(view(tiny("llama"), ROUTE)))
        expected.save_pretrained(tmp_path)
        assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"target_modules": ["wte", "c_attn"]}),  # the embedding, whose weight is the head's as well
        ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [3, 4, 5]}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("llama", {"use_dora": True}),
        ("qwen3_moe", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    ],
    ids=["tied embedding", "tokens", "embedding and head", "dora", "experts"],
)
# PEFT warns of adapters on one of two tied modules; saving must part the two.
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
def test_kinds_of_adapters_run_and_are_saved(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(name, **settings)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.05)
    assert_same(states(view(model, FULL)), states(model))
    shallow = view(model, ROUTE)
    assert (states(shallow)[0] - states(view(tiny(name), ROUTE))[0]).abs().max() > 0.05
    before, values = everything(model), copies(model)
    shallow.save_pretrained(tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), shallow)
    assert_untouched(before, model)
    assert_same_copies(values, model)


def test_an_adapter_added_by_transformers_itself(tmp_path: Path) -> None:
    torch.manual_seed(5)
    base = tiny("llama")
    add_adapter(base, lora())
    shallow = view(base, ROUTE)
    assert_same(states(shallow), states(view(adapted("llama"), ROUTE)))
    before, values = everything(base), copies(base)
    shallow.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob("adapter*"))
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), shallow)
    assert_untouched(before, base)
    assert_same_copies(values, base)


# ------------------------------------------------------------------ adapters of the view's own


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_put_on_a_view_stays_on_it(name: str, tmp_path: Path) -> None:
    base = tiny(name)
    results = states(base)
    frozen = [p.requires_grad for p in base.parameters()]
    before, values = everything(base), copies(base)
    torch.manual_seed(5)
    model = peft.get_peft_model(view(base, ROUTE), lora(name))
    assert_untouched(before, base)
    assert (states(model)[0] - states(view(base, ROUTE))[0]).abs().max() > 0.05
    model(torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None]).loss.backward()
    assert all(p.grad is None for p in base.parameters())
    assert_untouched(before, base)
    assert_same_copies(values, base)
    assert_same(states(base), results)
    # PEFT freezes the weights of the model that it is given, and not those of its base.
    assert all(frozen)
    assert [p.requires_grad for p in base.parameters()] == frozen
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(view(tiny(name), ROUTE), tmp_path)
    assert_same(states(again), states(model))


def test_an_adapter_that_transformers_adds_to_a_view_is_saved_alone(tmp_path: Path) -> None:
    base = tiny("llama")
    before = everything(base)
    shallow = view(base, ROUTE)
    add_adapter(shallow, lora())
    assert_untouched(before, base)
    shallow.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()
    again = view(tiny("llama"), ROUTE)
    again.load_adapter(str(tmp_path), "default")
    assert_same(states(again), states(shallow))


def test_a_view_of_an_adapted_view(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = peft.get_peft_model(view(tiny("llama"), (0, 1, 2, 4)), lora())
    inner = view(model, (1, 2, 3))
    cut = copy.deepcopy(model).merge_and_unload()
    assert_close(inner, view(cut, (1, 2, 3)))
    inner.save_pretrained(tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path), inner)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_methods_outside_the_layers_are_refused(method: str) -> None:
    settings = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny("llama"), settings)
    with pytest.raises(InputError, match="outside the decoder layers"):
        view(model, ROUTE)
