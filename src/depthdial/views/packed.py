"""Linear layers on packed weights: the same products on a CPU, in half the time or less.

oneDNN reads a weight fastest in an order of its own. PyTorch keeps weights in rows, so `F.linear` puts them in order anew
in every pass, or runs a slower kernel. Here a weight is packed once, when a layer first uses it, beside the parameter: that
takes its memory a second time. Results differ from `F.linear`'s in rounding.

The layers of a private view (see `snapshot`) get a `forward` of their own, which views of that view share; the user's model
keeps its own. Wherever a packed copy would not do (gradients, autocast, another dtype, compiling), the layer's class runs.

A copy is of the weight as it was when it was packed. Changes that PyTorch counts, such as those of an optimizer's step,
are noticed in the next pass. Changes behind its back (through `.data`, or by a fused optimizer) are noticed by the next
`pack_linears`, which compares a hash of every weight; so weights must not be changed that way while a session runs.

Source: oneDNN's weight prepacking, which TorchInductor uses when it freezes a model; the mechanism is this project's own.
"""

from __future__ import annotations

import functools
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from depthdial.checks import switched_on
from depthdial.hf.linears import plain_weight
from depthdial.views.memory import available_bytes

SWITCH = "DEPTHDIAL_PACK"
# Smaller weights stay in the processor's cache, where the kernels of `F.linear` start sooner.
LEAST_ELEMENTS = 2**16
# Of the memory that is available now, for the copies that are still to be made.
MEMORY_SHARE = 0.5


def pack_linears(model: nn.Module) -> None:
    """Have the linear layers of a private view of a model run on packed weights, where that is possible and pays.

    Nothing is packed yet: each weight is when it is first used, so layers that never run take no memory. All sessions of a
    model share the copies, which live as long as its parameters. Weights that would not fit in half of the memory that is
    available stay as they are, and so do all with `DEPTHDIAL_PACK=0` in the environment.

    Raises:
        InputError: for another value of `DEPTHDIAL_PACK` than 0 and 1.

    Example:
        >>> private = snapshot(model)
        >>> pack_linears(private)
        >>> packed_bytes(model)  # nothing has run
        0
    """
    if not _is_on():
        return
    available = available_bytes()
    left = None if available is None else MEMORY_SHARE * available
    kept: dict[int, _Packed | None] = {}  # by the weight's id, which tied layers share
    for module in model.modules():
        weight, is_transposed = plain_weight(module) or (None, False)
        if weight is None or not _is_packable(weight) or not _has_class_forward(module):
            continue
        if id(weight) not in kept:
            packed = kept[id(weight)] = _packed_of(weight, is_transposed)
            if packed is not None and not packed.is_made(weight) and left is not None:
                left -= weight.nbytes
                if left < 0:
                    left, kept[id(weight)] = left + weight.nbytes, None
        packed = kept[id(weight)]
        if packed is not None:
            module.__dict__["forward"] = functools.partial(_forward, module, packed)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the packed copies of a model's weights, which all of its sessions share.

    Example:
        >>> packed_bytes(model)  # too small to gain anything
        0
    """
    found = (_PACKED.get(weight) for weight in model.parameters())
    return sum(packed.n_bytes for packed in found if packed is not None)


@dataclass(frozen=True)
class _Copy:
    """A packed weight.

    Attributes:
        state: of the weight when it was packed; see `_state`.
        hash: of its numbers then.
    """

    tensor: torch.Tensor
    state: tuple[Any, ...]
    hash: int


class _Packed:
    """The packed copy of one parameter, made when it is first asked for."""

    def __init__(self, weight: nn.Parameter | None = None, is_transposed: bool = False) -> None:
        # No strong reference, which would keep the parameter, whose entry in `_PACKED` this is.
        self._weight = None if weight is None else weakref.ref(weight)
        self.is_transposed = is_transposed
        self._copy: _Copy | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Packed:
        return _Packed()  # a copy of a layer has another weight, which this is not of

    def __reduce__(self) -> Any:
        return _Packed, ()

    @property
    def n_bytes(self) -> int:
        copy = self._copy
        return 0 if copy is None else copy.tensor.numel() * copy.tensor.element_size()

    def is_made(self, weight: nn.Parameter) -> bool:
        """Whether there is a copy of the weight as it is now: one that is not is dropped."""
        copy = self._copy
        if copy is not None and (copy.state != _state(weight) or copy.hash != _hash(weight)):
            self._copy = copy = None
        return copy is not None

    def of(self, weight: nn.Parameter) -> torch.Tensor | None:
        """The packed copy, made now if need be; None if it is another parameter's."""
        if self._weight is None or self._weight() is not weight:
            return None
        copy = self._copy
        if copy is None or copy.state != _state(weight):
            copy = self._make(weight)
        return copy.tensor

    def _make(self, weight: nn.Parameter) -> _Copy:
        with self._lock:
            copy = self._copy
            if copy is None or copy.state != _state(weight):  # another thread may have made it meanwhile
                rows = weight.detach().t().contiguous() if self.is_transposed else weight.detach()
                packed = torch.ops.mkldnn._reorder_linear_weight(rows, None)
                self._copy = copy = _Copy(packed, _state(weight), _hash(weight))
            return copy


# Of every parameter that a session has used, for as long as the parameter lives.
_PACKED: Any = WeakTensorKeyDictionary()
_LOCK = threading.Lock()


def _packed_of(weight: nn.Parameter, is_transposed: bool) -> _Packed | None:
    """The one of a parameter; None where it is the weight of two layers that read it in different ways."""
    with _LOCK:
        packed = _PACKED.get(weight)
        if packed is None:
            packed = _PACKED[weight] = _Packed(weight, is_transposed)
    return packed if packed.is_transposed == is_transposed else None


def _forward(module: nn.Module, packed: _Packed, input: torch.Tensor) -> torch.Tensor:
    """In place of a linear layer's own forward."""
    if not torch.compiler.is_compiling():  # what is compiled reads the weights themselves
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        if weight is not None and _is_plain_pass(input, weight, bias, packed.is_transposed):
            tensor = packed.of(weight)
            if tensor is not None:
                return torch.ops.mkldnn._linear_pointwise(input, tensor, bias, "none", [], "")
    return type(module).forward(module, input)


def _is_plain_pass(input: torch.Tensor, weight: nn.Parameter, bias: torch.Tensor | None, is_transposed: bool) -> bool:
    """Whether a layer's result is nothing but the product of these tensors."""
    return (
        type(input) is torch.Tensor
        and input.dtype is weight.dtype
        and input.is_cpu
        and input.numel() > 0
        and input.shape[-1] == weight.shape[0 if is_transposed else 1]
        and not (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad or _needs_gradient(bias)))
        and (bias is None or (bias.dtype is weight.dtype and bias.is_cpu))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()  # what watches operations counts those of the class
        and bool(torch.backends.mkldnn.enabled)
    )


def _needs_gradient(bias: torch.Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _is_packable(weight: nn.Parameter) -> bool:
    is_known = weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and _has_bfloat16())
    is_whole = weight.dim() == 2 and weight.is_contiguous() and weight.shape[1] * weight.element_size() % 8 == 0
    return is_known and is_whole and weight.is_cpu and weight.numel() >= LEAST_ELEMENTS


def _has_class_forward(module: nn.Module) -> bool:
    """Whether a layer runs its class's forward, or ours: others, such as accelerate's, stay."""
    own = module.__dict__.get("forward")
    return own is None or (isinstance(own, functools.partial) and own.func is _forward)


def _is_on() -> bool:
    is_asked = switched_on(SWITCH, on="to pack weights", off="not to")
    return is_asked and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


@functools.cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _state(weight: nn.Parameter) -> tuple[Any, ...]:
    return weight._version, weight.data_ptr(), weight.shape, weight.dtype


def _hash(weight: nn.Parameter) -> int:
    """A number of a weight's bytes that any change of one element changes, and almost certainly any other change.

    Bilinear, modulo 2**64: every eight bytes, as an integer, times a random odd number of its row and one of its column. It
    takes as long as to read the weight from memory, so all of them about as long as one step of decoding.
    """
    words = weight.detach().view(torch.int64)
    n_rows, n_columns = words.shape
    return int(torch.dot(torch.mv(words, _odd_numbers(n_columns)), _odd_numbers(n_rows)))


@functools.lru_cache(64)
def _odd_numbers(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2 + 1
