"""GGUF files of models: loaded again, and in llama.cpp, they are the model that they were made of."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from depthdial.errors import InputError
from depthdial.hf.gguf_write import GGUF_TYPES, check_gguf_model, write_gguf
from depthdial.hf.load import load
from tests.hf.checkpoints import logits, tiny_gpt2, tiny_tokenizer
from tests.hf.gguf_models import KNOWN, logits_in_llama_cpp, tiny_for_gguf

IDS = list(range(3, 40))


@pytest.mark.parametrize("kind", KNOWN)
def test_a_file_loads_as_the_model_it_was_made_of(tmp_path: Path, kind: str) -> None:
    model = tiny_for_gguf(kind)
    write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", file_type="f32", name="tiny")
    again, tokenizer = load(tmp_path / "m.gguf", dtype="float32")
    if kind == "gemma3_text":  # its norms are kept with 1 added, which rounds
        torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(logits(again), logits(model))
    assert tokenizer("a  a1")["input_ids"] == tiny_tokenizer()("a  a1")["input_ids"]


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_types_round_as_far_as_they_say(tmp_path: Path, file_type: str) -> None:
    model = tiny_for_gguf("llama")
    write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", file_type=file_type)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {one.tensor_type.name for one in reader.tensors if len(one.shape) > 1}
    assert kinds == {file_type.upper()}
    again, _ = load(tmp_path / "m.gguf", dtype="float32")
    largest = max((a - b).detach().abs().max().item() for a, b in zip(again.parameters(), model.parameters(), strict=True))
    low, high = {"f32": (0, 0), "f16": (0, 1e-3), "bf16": (0, 1e-2), "q8_0": (0, 1e-2)}[file_type]
    assert low <= largest <= high and (file_type == "f32") == (largest == 0)


def test_rows_that_do_not_fit_blocks_are_fp16(tmp_path: Path) -> None:
    model = tiny_for_gguf("llama", intermediate_size=48)
    write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", file_type="q8_0")
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    for tied in (True, False):
        write_gguf(tiny_for_gguf("llama", tie_word_embeddings=tied), tiny_tokenizer(), tmp_path / "m.gguf", file_type="f32")
        names = {one.name for one in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        assert ("output.weight" in names) is not tied
        assert load(tmp_path / "m.gguf")[0].config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "frequencies of the kind linear",
        ),
        ("llama", {"hidden_act": "relu"}, "computes otherwise than llama.cpp's llama"),
        ("mistral", {"sliding_window": 8}, "sliding windows, which llama.cpp has not for llama"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, "scales attention by 64"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path, kind: str, changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        check_gguf_model(tiny_for_gguf(kind, **changes))
    assert "export with --to hf" in str(caught.value) and "\n" not in str(caught.value)


def test_other_architectures_and_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of the kind gpt2, and GGUF files are written of gemma3_text, llama"):
        write_gguf(tiny_gpt2(), tiny_tokenizer(), tmp_path / "m.gguf")
    large = tiny_for_gguf("llama")
    with torch.no_grad():
        large.lm_head.weight[0, 0] = 1e5
    with pytest.raises(InputError, match="beyond those of f16: export with --gguf-type bf16"):
        write_gguf(large, tiny_tokenizer(), tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["f32", "q8_0"])
@pytest.mark.parametrize("kind", KNOWN)
def test_llama_cpp_computes_the_model(tmp_path: Path, kind: str, file_type: str) -> None:
    model = tiny_for_gguf(kind)
    write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", file_type=file_type)
    again = load(tmp_path / "m.gguf", dtype="float32")[0]  # of rounded weights, if they are
    with torch.no_grad():
        ours = again(torch.tensor([IDS])).logits[0].numpy()
    theirs = logits_in_llama_cpp(tmp_path / "m.gguf", IDS)
    if file_type == "f32":
        np.testing.assert_allclose(theirs, ours, atol=2e-3, rtol=2e-3)
        assert np.array_equal(theirs.argmax(-1), ours.argmax(-1))
    else:  # llama.cpp rounds activations to eight bits too
        assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > 0.8
