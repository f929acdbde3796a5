"""`dd.load` on tiny random models written on the spot; every test runs with the network cut."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from depthdial.errors import InputError
from depthdial.hf import load as load_module
from depthdial.hf.load import load, resolve_dtype, resolve_name
from depthdial.hf.weights import weights_hash
from tests.hf.checkpoints import (
    SIZES,
    WORDS,
    cut_network,
    edit_config,
    logits,
    save,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
    write_gguf,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


def tiny_neox() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **shape)).eval()


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
    with pytest.raises(InputError, match="torch_dtype is called dtype"):
        load(folder, torch_dtype="auto")


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
        ("./nowhere", r"There is no folder \./nowhere"),
        ("/no/where", "There is no folder /no/where"),
        ("~/no-such-folder-here", "There is no folder"),
        ("a/b/c", "Hub id has the form owner/name"),
        ("no/such.gguf", r"There is no file no/such\.gguf"),
        (Path("owner/name"), "There is no folder owner"),
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
    with pytest.raises(InputError, match=r"Unknown dtype .*: known are auto, float32, .*float16, .*bfloat16"):
        resolve_dtype(asked)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "finds no CUDA device"),
        ({"device": "mps"}, "finds no Apple GPU"),
        ({"device": "gpu"}, "Unknown device 'gpu'"),
        ({"device": "meta"}, "Unknown device meta"),
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


def test_threads_that_load_at_once_leave_no_trace(folder: Path) -> None:
    hf_logging, logger = transformers.utils.logging, logging.getLogger("transformers")
    level = logger.level
    with ThreadPoolExecutor(4) as pool:
        models = [model for model, _ in pool.map(load, [folder] * 8)]
    assert {weights_hash(model) for model in models} == {weights_hash(tiny_llama())}
    assert logger.level == level
    assert hf_logging.set_tqdm_hook(None) is None


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
