"""`dd.load` with `adapter=`: PEFT folders, the cards in them, and the adapter that ships; the network is cut."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from depthdial.errors import InputError
from depthdial.hf import load as load_module
from depthdial.hf.adapter import CARD_FILE, AdapterCard, adapter_card
from depthdial.hf.load import load
from depthdial.hf.untouched import untouched
from depthdial.hf.weights import weights_hash
from depthdial.routes import Route
from depthdial.views.view import view
from tests.hf.checkpoints import cut_network, logits, save, tiny_llama


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


def save_adapter(folder: Path, **changes: object) -> Path:
    from peft import LoraConfig, get_peft_model

    base = tiny_llama(**changes)
    with warnings.catch_warnings():  # PEFT asks transformers for what a later transformers calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_applied(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    model, _ = load(folder, adapter=adapter)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not torch.allclose(logits(model), logits(tiny_llama()))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_llama()))


def test_an_adapter_where_a_model_is_meant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a PEFT adapter.*adapter="):
        load(save_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 1}])
def test_an_adapter_for_another_model(folder: Path, tmp_path: Path, change: dict[str, int]) -> None:
    adapter = save_adapter(tmp_path / "adapter", **change)
    with pytest.raises(InputError, match=r"adapter .* does not fit the model"):
        load(folder, adapter=adapter)


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="safe_serialization=True"):
        load(folder, adapter=adapter, allow_bin=True)


def write_card(adapter: Path, base: torch.nn.Module, **changes: object) -> AdapterCard:
    about = {"base_name": "tiny", "base_weights_hash": weights_hash(base), "base_dtype": "float32", "n_layers": 2}
    routes = (Route((0,), 2), Route((0, 1), 2))
    card = AdapterCard(**({"kind": "elastic", "prompt_depth": "full", "routes": routes} | about | changes))  # type: ignore
    card.save(adapter)
    return card


def test_an_adapter_with_a_card_is_checked_and_its_card_found(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    plain, _ = load(folder, adapter=adapter)
    assert adapter_card(plain) is None
    card = write_card(adapter, tiny_llama())
    model, _ = load(folder, adapter=adapter)
    assert adapter_card(model) == adapter_card(view(model, (0,))) == card
    assert torch.equal(logits(model), logits(plain))
    with untouched(model):
        assert torch.equal(logits(model), logits(load(folder)[0].requires_grad_(False)))
    half, _ = load(folder, adapter=adapter, dtype="bf16")
    assert adapter_card(half) == card


def test_an_adapter_whose_card_names_another_base(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    other = tiny_llama()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    write_card(adapter, other)
    with pytest.raises(InputError, match=rf"The adapter {adapter} is for tiny \(2 layers.* and this is {folder} \(2 layers"):
        load(folder, adapter=adapter)
    (adapter / CARD_FILE).write_text("half")
    with pytest.raises(InputError, match="not a readable adapter card"):
        load(folder, adapter=adapter)


def test_a_whole_model_is_no_adapter(folder: Path, tmp_path: Path) -> None:
    whole = save(tiny_llama(), tmp_path / "whole")
    write_card(whole, tiny_llama(), kind="specialist", routes=(Route((0,), 2),))
    with pytest.raises(InputError, match=r"whole holds a whole model and no adapter: load it as the model"):
        load(folder, adapter=whole)
    assert torch.equal(logits(load(whole)[0]), logits(tiny_llama()))


def test_the_elastic_adapter_is_for_the_built_in_model(folder: Path) -> None:
    with pytest.raises(InputError, match=r'No elastic adapter ships for .*llama: adapter="elastic" is for smollm2-135m'):
        load(folder, adapter="elastic")


def test_the_shipped_adapter_is_loaded_by_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    card = write_card(adapter, tiny_llama())
    monkeypatch.setattr(load_module.builtin, "ensure", lambda *_: folder)
    monkeypatch.setattr(load_module, "shipped_adapter", {"smollm2-135m": adapter}.__getitem__)
    model, _ = load("smollm2-135m", adapter="elastic")
    assert adapter_card(model) == card
