"""A GGUF file cut to some layers: tensors as they were, metadata of as many layers, and a model that loads as the view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from depthdial.errors import InputError
from depthdial.hf.gguf_cut import cut_gguf
from depthdial.hf.gguf_write import write_gguf
from depthdial.hf.load import load
from depthdial.views.view import view
from tests.hf.checkpoints import cut, logits, tiny_tokenizer
from tests.hf.checkpoints import write_gguf as write_tiny
from tests.hf.gguf_models import N_LAYERS, logits_in_llama_cpp, tiny_for_gguf

LAYERS = (0, 1, 2, 5)


def written(folder: Path, kind: str, file_type: str = "q8_0") -> Path:
    write_gguf(tiny_for_gguf(kind), tiny_tokenizer(), folder / "whole.gguf", file_type=file_type)
    return folder / "whole.gguf"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_a_cut_file_is_the_view_of_the_whole_one(tmp_path: Path, kind: str) -> None:
    source, target = written(tmp_path, kind), tmp_path / "cut.gguf"
    cut_gguf(source, target, LAYERS, N_LAYERS)
    whole, _ = load(source)
    again, _ = load(target)
    assert torch.equal(logits(again), logits(view(whole, LAYERS)))


def test_tensors_are_copied_as_they_are(tmp_path: Path) -> None:
    source, target = written(tmp_path, "llama"), tmp_path / "cut.gguf"
    cut_gguf(source, target, LAYERS, N_LAYERS)
    old = {one.name: one for one in gguf.GGUFReader(source).tensors}
    new = {one.name: one for one in gguf.GGUFReader(target).tensors}
    assert {int(name.split(".")[1]) for name in new if name.startswith("blk.")} == set(range(len(LAYERS)))
    for name, tensor in new.items():
        parts = name.split(".")
        before = old[".".join([parts[0], str(LAYERS[int(parts[1])]), *parts[2:]]) if parts[0] == "blk" else name]
        assert tensor.tensor_type == before.tensor_type
        assert np.array_equal(tensor.data, before.data)
    assert {tensor.tensor_type.name for tensor in new.values()} == {"F32", "Q8_0"}


def with_arrays(path: Path, **arrays: Any) -> Path:
    """The same file with one entry a layer where it had a number for all."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("arrays.gguf"), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            array = arrays.get(field.name.removeprefix("llama.").replace(".", "_"))
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            if array is not None:
                writer.add_array(field.name, array)
            else:
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("arrays.gguf")


def test_arrays_with_an_entry_a_layer_are_cut(tmp_path: Path) -> None:
    source = with_arrays(written(tmp_path, "llama"), attention_head_count_kv=[2] * 6, feed_forward_length=[96] * 6)
    cut_gguf(source, tmp_path / "cut.gguf", LAYERS, N_LAYERS)
    fields = gguf.GGUFReader(tmp_path / "cut.gguf").fields
    assert fields["llama.attention.head_count_kv"].contents() == [2] * 4
    assert fields["llama.feed_forward_length"].contents() == [96] * 4
    assert fields["llama.block_count"].contents() == 4
    old = gguf.GGUFReader(source).fields
    same = [name for name in old if name.startswith(("tokenizer.", "general."))]
    assert all(fields[name].contents() == old[name].contents() for name in same) and len(same) > 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "arrays"])
def test_llama_cpp_computes_the_view(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path, "llama" if kind == "arrays" else kind, "f32")
    if kind == "arrays":
        source = with_arrays(source, attention_head_count_kv=[2] * 6, feed_forward_length=[96] * 6)
    cut_gguf(source, tmp_path / "cut.gguf", LAYERS, N_LAYERS)
    ids = list(range(3, 40))
    shallow = view(tiny_for_gguf("llama" if kind == "arrays" else kind), LAYERS)
    with torch.no_grad():
        ours = shallow(torch.tensor([ids])).logits[0].numpy()
    theirs = logits_in_llama_cpp(tmp_path / "cut.gguf", ids)
    np.testing.assert_allclose(theirs, ours, atol=2e-3, rtol=2e-3)
    assert np.array_equal(theirs.argmax(-1), ours.argmax(-1))


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path, "llama")
    with pytest.raises(InputError, match="has 6 layers and the model 7"):
        cut_gguf(source, tmp_path / "cut.gguf", LAYERS, 7)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv6")
    writer.add_block_count(6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="of the architecture 'rwkv6', whose layers may depend on their place"):
        cut_gguf(tmp_path / "other.gguf", tmp_path / "cut.gguf", LAYERS, N_LAYERS)
    damaged = write_tiny(tmp_path / "damaged.gguf")
    cut(damaged, 0.01)
    with pytest.raises(InputError, match="cannot be read"):
        cut_gguf(damaged, tmp_path / "cut.gguf", (0,), 2)
