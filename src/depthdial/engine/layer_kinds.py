"""Kinds of decoder layers: those that compute the same function of their weights, and so can share one compiled function.

Two layers are of one kind if they have the same modules, attributes, configuration and shapes of weights, wherever they
stand. Adapters inside count: their weights are further weights, their scales are attributes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depthdial.hf.architectures import LAYER_INDEX_ATTRIBUTES
from depthdial.hf.facts import is_config, layer_settings
from depthdial.provenance import digest

_COMPILED_DTYPES = (torch.float32, torch.bfloat16)
# Of every module: tables, which are looked at in other ways, and switches without effect on what is computed.
_NOT_DESCRIBED = frozenset(
    (
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_hf_initialized", "training"),
        *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_state_dict_hooks", "gradient_checkpointing"),
        *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "call_super_init"),
        *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"),
    )
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OWN_SOURCES = ("attention.py", "compiled.py", "compiling.py", "layer_kinds.py", "warmup.py")
# Whose `forward` in the place of a linear layer's own computes the same.
_PACKED = "depthdial.views.packed"
# A layer's number in the name of a module, which PEFT keeps.
_PLACE = re.compile(r"(?<=\.)\d+(?=\.)")


class _IndescribableError(Exception):
    """Something in a layer of which it cannot be said whether another layer has the same."""


def layer_kind(layer: nn.Module) -> str | None:
    """What a layer has in common with all of its kind, as a short hash; None for one that cannot be compiled.

    Compiled are layers on a CPU, in fp32 or bf16, in evaluation mode, with plain weights and without hooks.
    """
    try:
        parts = [_module(name, module) for name, module in layer.named_modules()]
        weights = [_weight(name, tensor) for name, tensor in weights_of(layer)]
    except _IndescribableError:
        return None
    return digest({"modules": parts, "weights": weights})


def weights_of(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a layer, by name, in an order that is the same for all of a kind."""
    return [*layer.named_parameters(), *layer.named_buffers()]


def plain_forward(module: nn.Module) -> bool:
    """Whether a module computes what its class does."""
    own = module.__dict__.get("forward")
    return own is None or getattr(getattr(own, "func", None), "__module__", None) == _PACKED


@functools.cache
def surroundings() -> dict[str, Any]:
    """What a compiled function depends on beside the layer: versions, sources and the processor."""
    folder = Path(__file__).parent
    sources = hashlib.sha256(b"".join((folder / name).read_bytes() for name in _OWN_SOURCES)).hexdigest()
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "depthdial")}
    return {"torch": torch.__version__, **versions, "sources": sources, "processor": _processor()}


def _processor() -> str:
    """Instructions that the processor knows: compiled code uses what is there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def _module(prefix: str, module: nn.Module) -> list[Any]:
    if module.training or not plain_forward(module) or any(module.__dict__.get(name) for name in _HOOKS):
        raise _IndescribableError(prefix)
    told = {
        name: _described(value)
        for name, value in module.__dict__.items()
        if name not in _NOT_DESCRIBED and name not in LAYER_INDEX_ATTRIBUTES and not _is_a_view_s(type(module), name, value)
    }
    return [prefix, _named(type(module)), _source(type(module)), told]


def _is_a_view_s(kind: type, name: str, value: Any) -> bool:
    # A view's modules have its table of shared weights, and methods that ask it before weights are changed.
    return name.startswith("depthdial_") or (callable(value) and callable(getattr(kind, name, None)))


def _weight(name: str, tensor: torch.Tensor) -> list[Any]:
    is_plain = type(tensor) in (nn.Parameter, torch.Tensor) and tensor.layout == torch.strided
    if not is_plain or tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype not in _COMPILED_DTYPES):
        raise _IndescribableError(name)
    return [name, list(tensor.shape), list(tensor.stride()), str(tensor.dtype)]


def _described(value: Any, depth: int = 0) -> Any:
    """A value of an attribute as JSON can hold it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _PLACE.sub("*", value)
    if isinstance(value, torch.Tensor) or depth > 4:  # a tensor that is no buffer would be compiled in
        raise _IndescribableError(type(value).__name__)
    if isinstance(value, tuple | list):
        return [_described(one, depth + 1) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_described(one, depth + 1)) for one in value)
    if isinstance(value, dict):
        return [[str(key), _described(one, depth + 1)] for key, one in value.items()]
    if is_config(value):
        return layer_settings(value)
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return _named(value)
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return str(value)
    if isinstance(value, nn.Module):  # beside the tables, where PEFT keeps what it shares
        raise _IndescribableError(type(value).__name__)
    if hasattr(value, "__dict__"):
        return [_named(type(value)), _described(vars(value), depth + 1)]
    raise _IndescribableError(type(value).__name__)


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


@functools.cache
def _source(kind: type) -> str:
    """A hash of the code of a class, with all that stands in its file: releases and remote code differ in it."""
    if kind.__module__.startswith("torch."):  # whose version is named
        return ""
    try:
        text = inspect.getsource(sys.modules[kind.__module__])
    except (KeyError, OSError, TypeError) as error:
        raise _IndescribableError(kind.__name__) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]
