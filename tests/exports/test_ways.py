"""GGUF files and drafts by `dd.export`: made of a model, or copied from the file that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError
from depthdial.exports.quality import SHIPPED
from depthdial.exports.ways import GGUF_FILE
from tests.conftest import make_task
from tests.hf.checkpoints import logits, tiny_tokenizer, write_gguf
from tests.hf.gguf_models import logits_in_llama_cpp, tiny_for_gguf

LAYERS = (0, 2, 3, 5)


def rows() -> Any:
    return make_task(["a a1", "1 a 2", "aa"], ["a", "a1", "2"])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_a_gguf_file_is_the_view(tmp_path: Path, kind: str) -> None:
    model, tokenizer = tiny_for_gguf(kind), tiny_tokenizer()
    done = dd.export(
        *(model, tokenizer),
        depth=LAYERS,
        to="gguf",
        gguf_type="f32",
        out=tmp_path / "out",
        measured=kind == "llama",
        task=rows(),
    )
    assert done.comparison.agreement == 1 and (done.comparison.is_equal or kind == "gemma3_text")
    again, _ = dd.load(tmp_path / "out" / GGUF_FILE)
    torch.testing.assert_close(logits(again), logits(dd.view(model, LAYERS)), atol=1e-4, rtol=1e-4)
    assert kind != "llama" or done.quality.of(SHIPPED).layers == len(LAYERS)
    assert done.commands == (f"llama-cli -m {tmp_path / 'out' / GGUF_FILE} -p PROMPT",)


def test_a_gguf_file_is_copied_from_its_own(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", quantised=True)
    model, tokenizer = dd.load(source)
    done = dd.export(model, tokenizer, depth="1-1", to="gguf", source=source, out=tmp_path / "out", measured=False)
    assert done.comparison.is_equal
    kinds = {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "out" / GGUF_FILE).tensors if len(one.shape) > 1}
    assert kinds == {"Q4_1"}
    other = dd.export(
        model, tokenizer, depth="1-1", to="gguf", source=source, gguf_type="f16", out=tmp_path / "f16", measured=False
    )
    assert {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "f16" / GGUF_FILE).tensors} == {"F32", "F16"}
    assert other.comparison.agreement > 0.9


def test_another_model_than_the_source_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = dd.load(source)
    with torch.no_grad():
        model.get_input_embeddings().weight.neg_()
    with pytest.raises(InputError, match=r"computes something else than the model it was made of"):
        dd.export(model, tokenizer, depth="1-1", to="gguf", source=source, out=tmp_path / "out", measured=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_draft_for_both_engines(tmp_path: Path) -> None:
    model, tokenizer = tiny_for_gguf("llama"), tiny_tokenizer()
    done = dd.export(model, tokenizer, depth=LAYERS, to="draft", out=tmp_path / "out", measured=False, name="org/llama")
    assert done.notes == () and done.comparison.is_equal
    assert done.commands[1] == f"llama-server -m MODEL.gguf --model-draft {tmp_path / 'out' / 'draft.gguf'}"
    assert dd.load(tmp_path / "out")[0].config.num_hidden_layers == 4
    assert dd.load(tmp_path / "out" / "draft.gguf")[0].config.num_hidden_layers == 4


def test_an_architecture_that_gguf_has_not_is_refused(model, tmp_path: Path) -> None:
    from tests.hf.checkpoints import tiny_gpt2

    with pytest.raises(InputError, match=r"of the kind gpt2, .* export with --to hf"):
        dd.export(tiny_gpt2(), tiny_tokenizer(), depth="1-1", to="gguf", out=tmp_path / "out", measured=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_llama_cpp_predicts_what_the_view_predicts(tmp_path: Path, kind: str) -> None:
    model, ids = tiny_for_gguf(kind), list(range(3, 40))
    dd.export(model, tiny_tokenizer(), depth=LAYERS, to="gguf", gguf_type="f32", out=tmp_path / "out", measured=False)
    with torch.no_grad():
        ours = dd.view(model, LAYERS)(torch.tensor([ids])).logits[0].numpy()
    theirs = logits_in_llama_cpp(tmp_path / "out" / GGUF_FILE, ids)
    assert np.array_equal(theirs.argmax(-1), ours.argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("gguf_type", ["f16", "q8_0"])
def test_the_real_model_in_llama_cpp(tmp_path: Path, gguf_type: str) -> None:
    model, tokenizer = dd.load("smollm2-135m")
    dd.export(model, tokenizer, depth="drop:12,17", to="gguf", gguf_type=gguf_type, out=tmp_path / "out", measured=False)
    ids = tokenizer("The capital of France is Paris. The capital of Italy is Rome, and in 1234 there were 3 cats.")[
        "input_ids"
    ]
    with torch.no_grad():
        ours = dd.view(model, "drop:12,17")(torch.tensor([ids])).logits[0].numpy()
    theirs = logits_in_llama_cpp(tmp_path / "out" / GGUF_FILE, ids)
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > (0.9 if gguf_type == "q8_0" else 0.99)
