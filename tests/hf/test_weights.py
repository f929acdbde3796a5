"""The fingerprint of the weights: the same for the same weights, another for any change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from depthdial.errors import InputError
from depthdial.hf.weights import stored_bytes, weights_hash


def small(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


CHILD = """
import torch
from depthdial.hf.weights import weights_hash
model = torch.nn.Linear(3, 4)
with torch.no_grad():
    model.weight.copy_(torch.arange(12.0).view(4, 3)), model.bias.fill_(0.5)
print(weights_hash(model))
"""


def test_the_hash_is_the_same_in_another_process() -> None:
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.copy_(torch.arange(12.0).view(4, 3)), model.bias.fill_(0.5)
    # another seed for Python's own hashes, which would show in the order of a set
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == weights_hash(model)


def test_the_hash_is_pinned() -> None:
    # Rows of results carry this value: a change of the recipe would part old rows from new ones without a word.
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    assert weights_hash(model) == "6094a7fc149a0d942b5eb03b0615131e3ef70dbfd6c47254a5cef642c6518661"


@given(tensor=st.integers(0, 4), data=st.data())
def test_one_changed_number_changes_the_hash(tensor: int, data: st.DataObject) -> None:
    model = small()
    before = weights_hash(model)
    flat = list(model.parameters())[tensor].detach().view(-1)
    place = data.draw(st.integers(0, flat.numel() - 1))
    old = flat[place].item()
    flat[place] += 1.0
    assert weights_hash(model) != before
    flat[place] = old
    assert weights_hash(model) == before


def test_the_hash_in_another_type_is_that_of_the_cast_model() -> None:
    assert weights_hash(small(), torch.bfloat16) == weights_hash(small().bfloat16())
    assert weights_hash(small().bfloat16().double(), torch.bfloat16) == weights_hash(small().bfloat16())
    assert weights_hash(small(), torch.float32) == weights_hash(small())


def test_dtype_shape_and_name_count() -> None:
    base = weights_hash(small())
    assert weights_hash(small().double()) != base
    renamed = nn.Sequential(*small().children(), nn.Identity())
    assert weights_hash(renamed) == base
    assert weights_hash(nn.ModuleDict({"a": small()})) != base
    flat, square = nn.Embedding(1, 4), nn.Embedding(2, 2)
    with torch.no_grad():
        flat.weight.zero_(), square.weight.zero_()
    assert weights_hash(flat) != weights_hash(square)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_hashed(dtype: torch.dtype) -> None:
    assert weights_hash(small(0, dtype)) == weights_hash(small(0, dtype)) != weights_hash(small(1, dtype))


def test_memory_layout_does_not_count() -> None:
    model, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = nn.Parameter(model.weight.detach().t().contiguous().t())
    assert not other.weight.is_contiguous()
    assert weights_hash(other) == weights_hash(model)


def test_tied_weights_are_read_once_and_hash_like_untied_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    untied = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    untied.load_state_dict(model.state_dict())
    read: list[str] = []
    import depthdial.hf.weights as module

    original = module._as_bytes
    monkeypatch.setattr(module, "_as_bytes", lambda name, tensor: (read.append(name), original(name, tensor))[1])
    tied_hash = weights_hash(model)
    assert read == ["embed.weight"]
    assert weights_hash(untied) == tied_hash
    assert read == ["embed.weight", "embed.weight", "head.weight"]


def test_buffers_scalars_and_empty_tensors_are_hashed() -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("empty", torch.empty(0, 3))
    before = weights_hash(model)
    model.num_batches_tracked += 1
    assert weights_hash(model) != before


def test_offloaded_weights_hash_like_the_others(tmp_path) -> None:
    from accelerate import cpu_offload, disk_offload

    base = weights_hash(small())
    assert weights_hash(cpu_offload(small(), execution_device=torch.device("cpu"))) == base
    on_disk = disk_offload(small(), str(tmp_path), execution_device=torch.device("cpu"))
    assert next(on_disk.parameters()).is_meta
    assert weights_hash(on_disk) == base
    assert next(on_disk.parameters()).is_meta


def test_a_model_without_data_is_refused() -> None:
    with pytest.raises(InputError, match="meta device"):
        weights_hash(small().to("meta"))


class Halved(torch.Tensor):
    """A weight-only quantised tensor as torchao makes them: int8 numbers and a scale."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(f"{function} is not implemented")


def halved(numbers: list[int], scale: float) -> nn.Module:
    model = nn.Linear(2, 1, bias=False)
    weight = Halved(torch.tensor([numbers], dtype=torch.int8), torch.tensor([scale]))
    model.weight = nn.Parameter(weight, requires_grad=False)
    return model


def test_a_tensor_subclass_counts_as_it_is_stored() -> None:
    hashes = [weights_hash(halved(numbers, scale)) for numbers, scale in [([1, 2], 0.5), ([1, 3], 0.5), ([1, 2], 0.25)]]
    assert len(set(hashes)) == 3
    assert weights_hash(halved([1, 2], 0.5)) == hashes[0] == weights_hash(halved([1, 2], 0.5), torch.bfloat16)
    assert stored_bytes(halved([1, 2], 0.5).weight) == 2 * 1 + 4
    assert stored_bytes(nn.Linear(2, 3).weight) == 24


@pytest.mark.filterwarnings("ignore")  # PyTorch means to drop it
def test_a_dynamically_quantised_module_counts() -> None:
    def quantised(seed: int) -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(small(seed), {nn.Linear})

    assert weights_hash(quantised(0)) == weights_hash(quantised(0)) != weights_hash(quantised(1))
