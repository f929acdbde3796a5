"""What `dd.load` must refuse to run or to read: pickled code, a checkpoint's own code, damaged files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from depthdial.errors import InputError
from depthdial.hf.load import load
from tests.hf.checkpoints import cut, cut_network, edit_config, logits, save, save_bin, tiny_gpt2, tiny_llama


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


# ---------------------------------------------------------------- pickled weights and code


def test_bin_weights_need_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_bin(tiny_llama(), tmp_path / "old")
    with pytest.raises(InputError, match="--allow-bin"):
        load(folder)
    seen, original = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: (seen.append(options), original(*args, **options))[1])
    model, _ = load(folder, allow_bin=True)
    assert torch.equal(logits(model), logits(tiny_llama()))
    assert [options["weights_only"] for options in seen] == [True] * len(seen) != []


def test_safetensors_are_taken_where_both_are(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert torch.equal(logits(load(folder, allow_bin=True)[0]), logits(tiny_llama()))


class Payload:
    """Pickles to a call that makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["whole", "beside the tensors"])
def test_a_malicious_pickle_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, zipped: bool
) -> None:
    folder, marker = save_bin(tiny_llama(), tmp_path / "evil"), tmp_path / "executed"
    payload = Payload(marker) if where == "whole" else {**tiny_llama().state_dict(), "x": Payload(marker)}
    torch.save(payload, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a user's setting that must not open the door
    with pytest.raises(InputError, match="runs no pickled code"):
        load(folder, allow_bin=True)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the payload works, so the check above can fail"


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_code_in_a_checkpoint_runs_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dynamic_module_utils", "utils.hub", "utils"):
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, marker = save(tiny_llama(), tmp_path / "own"), tmp_path / "executed"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    mapping = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_config(folder, model_type="own-llama", auto_map=mapping)
    with pytest.raises(InputError, match="own needs Python code of its own: pass trust_remote_code=True"):
        load(folder)
    assert not marker.exists()
    model, _ = load(folder, trust_remote_code=True)
    assert marker.exists()
    assert type(model).__name__ == "OwnForCausalLM"


def test_code_for_a_model_that_transformers_knows_is_left_alone(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text("raise RuntimeError('executed')")
    assert type(load(folder)[0]) is LlamaForCausalLM


def test_own_code_for_a_type_without_a_causal_class(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "m")
    edit_config(folder, model_type="vit", auto_map={"AutoModelForCausalLM": "own.Own"})
    with pytest.raises(InputError, match="trust_remote_code=True"):
        load(folder)


def test_a_kernel_named_by_the_checkpoint_is_not_fetched(folder: Path) -> None:
    edit_config(folder, attn_implementation="owner/kernel")
    with pytest.raises(InputError, match=r'attention kernel owner/kernel .*attn_implementation="sdpa"'):
        load(folder)
    assert load(folder, attn_implementation="sdpa")[0].config._attn_implementation == "sdpa"


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_cut_weights(folder: Path, keep: float) -> None:
    cut(folder / "model.safetensors", keep)
    with pytest.raises(InputError, match="llama cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_cut_bin_weights(tmp_path: Path, keep: float) -> None:
    folder = save_bin(tiny_llama(), tmp_path / "llama")
    cut(folder / "pytorch_model.bin", keep)
    with pytest.raises(InputError, match="llama cannot be loaded"):
        load(folder, allow_bin=True)


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    with pytest.raises(InputError, match="llama cannot be loaded: its weights have other shapes"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "never-heard-of"}'])
def test_a_config_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="has a configuration that cannot be read"):
        load(folder)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_no_tokenizer(tmp_path: Path, make) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer"):
        load(tmp_path)
