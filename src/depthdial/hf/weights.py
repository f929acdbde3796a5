"""One fingerprint for a model's weights, so that a result can say which weights it was measured on."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from depthdial.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def weights_hash(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of a model's weights, as 64 hexadecimal digits.

    The hash runs over (name, dtype, shape, SHA-256 of the bytes) of every tensor of the state dict in the order of the
    names. It is the same in every process and on every device, and it changes with any weight, name, dtype or shape.
    Tensors that share their memory (a tied head) are read once. Weights that accelerate keeps off the model (CPU or
    disk offload) are brought in one module at a time. Quantised weights count as they are stored: a tensor subclass
    (torchao's) by the tensors that it wraps, a dynamically quantised module by the numbers and scales that it packs. A
    538 MB model takes about half a second.

    Args:
        dtype: hash what the weights would be in this floating type, one tensor cast at a time (quantised ones stay as they
            are); default: as they are.

    Raises:
        InputError: a tensor has no data at all (a model on the meta device).
    """
    digests: dict[tuple[object, ...] | None, str] = {}
    whole = hashlib.sha256()
    for name, tensor in sorted(state_tensors(model)):
        with _materialised(model, name, tensor) as present:
            key = _memory_key(present)
            quantised = present.is_quantized or _is_wrapper(present)
            kind = dtype if dtype is not None and present.is_floating_point() and not quantised else present.dtype
            digest = digests.get(key) or _digest(name, present if quantised else present.to(kind))
            # Only memory that stays in place may be recognised by its address: an offloaded weight is freed again.
            if key is not None and not tensor.is_meta:
                digests[key] = digest
        kind_name, shape = str(kind).removeprefix("torch."), "x".join(map(str, tensor.shape))
        whole.update(f"{name}\t{kind_name}\t{shape}\t{digest}\n".encode())
    return whole.hexdigest()


def state_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a state dict by their names, with those that a quantised module packs into a tuple."""
    for name, value in model.state_dict().items():
        packed = isinstance(value, tuple | list)
        for i, tensor in enumerate(value if packed else [value]):
            if isinstance(tensor, torch.Tensor):  # a module's "extra state" may be any object: it is not a weight
                yield (f"{name}.{i}" if packed else name), tensor


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a subclass that keeps its numbers in other tensors, as torchao's quantised weights do."""
    return type(tensor) is not torch.nn.Parameter and hasattr(tensor, "__tensor_flatten__")


def stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold a tensor's numbers: itself, or what a tensor subclass wraps."""
    if not _is_wrapper(tensor):
        return [tensor]
    inner: Any = tensor
    return [part for name in inner.__tensor_flatten__()[0] for part in stored_tensors(getattr(inner, name))]


def stored_bytes(tensor: torch.Tensor) -> int:
    """The memory that a tensor's numbers take, in bytes; of a quantised weight with its scales."""
    return sum(part.numel() * part.element_size() for part in stored_tensors(tensor))


def _digest(name: str, tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        tensor = tensor.dequantize()  # numbers and scales in one; the same bytes for the same model
    parts = stored_tensors(tensor)
    if len(parts) == 1:
        return hashlib.sha256(_as_bytes(name, parts[0])).hexdigest()
    return hashlib.sha256("".join(_digest(name, part) for part in parts).encode()).hexdigest()


def _memory_key(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """What two tensors have in common when they are the same numbers in the same place; None where that cannot be seen."""
    if tensor.numel() == 0 or tensor.is_quantized or _is_wrapper(tensor):
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _as_bytes(name: str, tensor: torch.Tensor) -> memoryview:
    if tensor.is_meta:
        raise InputError(f"The weight {name} is on the meta device and has no data: load the model's weights first.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@contextmanager
def _materialised(model: nn.Module, name: str, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself or, where accelerate has moved its data away, the tensor while its module is brought back."""
    module_name, _, tensor_name = name.rpartition(".")
    if not tensor.is_meta or not hasattr(module := model.get_submodule(module_name), "_hf_hook"):  # accelerate's
        yield tensor
        return
    from accelerate.utils import align_module_device

    with align_module_device(module, torch.device("cpu")):
        yield getattr(module, tensor_name)
