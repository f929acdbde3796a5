"""One fingerprint for a model's weights, so that a result can say which weights it was measured on."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from depthdial.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import nn


def weights_hash(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of a model's weights, as 64 hexadecimal digits.

    The hash runs over (name, dtype, shape, SHA-256 of the bytes) of every tensor of the state dict in the order of the
    names. It is the same in every process and on every device, and it changes with any weight, name, dtype or shape.
    Tensors that share their memory (a tied head) are read once. Weights that accelerate keeps off the model (CPU or
    disk offload) are brought in one module at a time. A 538 MB model takes about half a second.

    Args:
        dtype: hash what the weights would be in this floating type, one tensor cast at a time; default: as they are.

    Raises:
        InputError: a tensor has no data at all (a model on the meta device).
    """
    digests: dict[tuple[object, ...], str] = {}
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue  # a module's "extra state" may be any object: it is not a weight
        with _materialised(model, name, tensor) as present:
            key = _memory_key(present)
            kind = dtype if dtype is not None and present.is_floating_point() else present.dtype
            if key is None or key not in digests:
                digest = hashlib.sha256(_as_bytes(name, present.to(kind))).hexdigest()
            else:
                digest = digests[key]
            # Only memory that stays in place may be recognised by its address: an offloaded weight is freed again.
            if key is not None and not tensor.is_meta:
                digests[key] = digest
        kind_name, shape = str(kind).removeprefix("torch."), "x".join(map(str, tensor.shape))
        whole.update(f"{name}\t{kind_name}\t{shape}\t{digest}\n".encode())
    return whole.hexdigest()


def _memory_key(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """What two tensors have in common when they are the same numbers in the same place; None for an empty tensor."""
    if tensor.numel() == 0:
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _as_bytes(name: str, tensor: torch.Tensor) -> memoryview:
    if tensor.is_meta:
        raise InputError(f"the weight {name} is on the meta device and has no data: load the model's weights first")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _materialised(model: nn.Module, name: str, tensor: torch.Tensor) -> AbstractContextManager[torch.Tensor]:
    """The tensor itself or, where accelerate has moved its data away, the tensor while its module is brought back."""
    module_name, _, tensor_name = name.rpartition(".")
    module = model.get_submodule(module_name)
    if not (tensor.is_meta and hasattr(module, "_hf_hook")):  # the attribute in which accelerate keeps its hook
        return nullcontext(tensor)
    from accelerate.utils import align_module_device

    @contextmanager
    def aligned() -> Iterator[torch.Tensor]:
        with align_module_device(module, torch.device("cpu")):
            yield getattr(module, tensor_name)

    return aligned()
