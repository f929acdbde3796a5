"""A checkpoint is loaded whole and right, or refused in one sentence: names, layers, numbers, tokenizers, quantisation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from depthdial.errors import CheckpointWarning, InputError, TokenizerWarning
from depthdial.hf.load import load
from tests.hf.checkpoints import cut_network, edit_config, logits, save, tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


def rewrite(folder: Path, change) -> None:
    """Change the weights of a folder: `change(name, tensor)` gives the new pairs."""
    weights = load_file(folder / "model.safetensors")
    pairs = [pair for name, tensor in weights.items() for pair in change(name, tensor)]
    save_file(dict(pairs), folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_names_that_a_wrapper_has_lengthened_load_right(folder: Path, prefix: str) -> None:
    rewrite(folder, lambda name, tensor: [(prefix + name, tensor)])
    assert torch.equal(logits(load(folder)[0]), logits(tiny_llama()))


def test_a_peft_model_saved_whole_with_its_adapter_is_refused(folder: Path) -> None:
    rewrite(
        folder,
        lambda name, tensor: [("base_model.model." + name.replace("q_proj.weight", "q_proj.base_layer.weight"), tensor)],
    )
    assert "lacks 2 of the weights" in refusal(folder)


@pytest.mark.parametrize(
    "names", ["model-{}-of-2", "layers-{}", "weights/model-{:05d}-of-00002", "model.safetensors-{:05d}-of-00002"]
)
def test_an_index_may_name_its_shards_as_it_likes(folder: Path, names: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for i in (1, 2):
        file = folder / f"{names.format(i)}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file(dict(list(weights.items())[i - 1 :: 2]), file, metadata={"format": "pt"})
        where |= dict.fromkeys(list(weights)[i - 1 :: 2], f"{names.format(i)}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert torch.equal(logits(load(folder)[0]), logits(tiny_llama()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert "one of its JSON files lacks the key 'metadata'" in refusal(folder)


def test_a_variant_loads_where_there_is_nothing_else(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert torch.equal(logits(load(folder)[0]), logits(tiny_llama()))


def test_another_number_of_layers_is_said_with_both(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)
    assert "holds 2 layers and its config.json names 1" in refusal(folder)
    edit_config(folder, num_hidden_layers=4)
    assert "holds 2 layers and its config.json names 4" in refusal(folder)
    edit_config(folder, num_hidden_layers=0)
    assert "names 0 layers" in refusal(folder)


def test_a_layer_in_the_middle_that_is_missing_is_not_a_number_of_layers(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: [] if "layers.0.mlp" in name else [(name, tensor)])
    assert "lacks 3 of the weights" in refusal(folder)


def test_weights_that_are_left_out_are_said(folder: Path) -> None:
    def with_bias(name: str, tensor: torch.Tensor) -> list:
        bias = [(name.replace("weight", "bias"), tensor[:, 0].clone())] if "o_proj" in name else []
        return [(name, tensor), *bias]

    rewrite(folder, with_bias)
    with pytest.warns(CheckpointWarning, match=r"holds 2 weights that its config.json has no place for .*o_proj.bias"):
        load(folder)


def test_nan_is_refused(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: [(name, tensor * float("nan") if "layers.1.mlp.up" in name else tensor)])
    assert "holds NaN (model.layers.1.mlp.up_proj.weight)" in refusal(folder)


def test_scales_without_a_quantization_config_are_refused(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: [(name, tensor), (f"{name}_scale_inv", tensor[:1].clone())])
    assert "holds quantised weights" in refusal(folder)


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ("gptq", "optimum"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
    ],
)
def test_a_quantisation_without_its_package_is_named(folder: Path, method: str, package: str) -> None:
    flags = {"load_in_4bit": True} if method == "bitsandbytes" else {}
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4, "group_size": 128} | flags)
    assert package in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization": {"bits": 4}}, "does not name with a quant_method"),
        ({"dtype": "float8_e4m3fn"}, 'names the dtype float8_e4m3fn, in which no model computes: pass dtype="bfloat16"'),
        ({"layer_types": ["full_attention"] * 9}, r"(2) must be equal to the number of `layer_types` (9)"),
        ({"model_type": "supernova"}, "does not know the model type 'supernova'"),
    ],
)
def test_a_bad_config_is_refused_with_its_reason(folder: Path, change: dict, words: str) -> None:
    edit_config(folder, **change)
    assert words in refusal(folder)


def test_a_config_that_is_not_json(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    assert "begins with a byte-order mark" in refusal(folder)
    (folder / "config.json").write_text("// hi\n" + text)
    assert "config.json is not JSON (Expecting value: line 1" in refusal(folder)
    (folder / "config.json").write_text(text)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not JSON" in refusal(folder)


def test_git_lfs_pointers_and_folders_of_a_run(folder: Path) -> None:
    pointer = folder / "model.safetensors"
    pointer.rename(folder / "kept")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert "git lfs pull" in refusal(folder)
    pointer.unlink()
    (folder / "kept").rename(folder / "consolidated.safetensors")
    assert "consolidated.safetensors, which transformers does not read" in refusal(folder)
    assert "its folder llama is a checkpoint" in refusal(folder.parent)


# ---------------------------------------------------------------- tokenizers


def test_a_pad_token_beyond_the_embeddings_is_replaced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_llama()
    model.generation_config.pad_token_id = len(tokenizer) - 1
    with pytest.warns(TokenizerWarning, match=r"'\[PAD\]' is replaced as the pad token"):
        model, tokenizer = load(save(model, tmp_path / "m", tokenizer))
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 2
    batch = tokenizer(["a", "a much longer one"], padding=True, return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_tokens_beyond_the_embeddings_are_said(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<x>", "<y>"])
    with pytest.warns(TokenizerWarning, match=r"text with '<x>' cannot be run \(nor with 1 more\)"):
        load(save(tiny_llama(), tmp_path / "m", tokenizer))


# ---------------------------------------------------------------- options


def test_options_are_passed_on(folder: Path) -> None:
    model, _ = load(folder, use_cache=False, max_memory={"cpu": "1GB"}, device_map="auto", token="x", local_files_only=True)
    assert model.config.use_cache is False
    assert torch.equal(logits(model), logits(tiny_llama()))


@pytest.mark.parametrize("options", [{"nonsense": 1}, {"ignore_mismatched_sizes": True}, {"state_dict": {}}])
def test_unknown_options_are_refused(folder: Path, options: dict) -> None:
    assert f"Unknown option '{next(iter(options))}': known are" in refusal(folder, **options)


def test_an_adapter_for_a_deeper_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.hf.test_load_adapters import save_adapter

    adapter = save_adapter(tmp_path / "adapter", num_hidden_layers=3)
    assert "the model has no model.layers.2.self_attn.q_proj" in refusal(folder, adapter=adapter)
