"""What two views of a model must have in common to compute the same on the same weights."""

from __future__ import annotations

import functools
import hashlib
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from depthdial.hf.facts import config_text

# Of every module: what is looked at in other ways, and what no result depends on.
_ELSEWHERE = frozenset({"_parameters", "_buffers", "_modules", "config", "generation_config", "_is_hf_initialized"})
_OWN_METHODS = ("depthdial.views.weights", "depthdial.views.view")


def signature(model: Any) -> str:
    """A hash of a model's configuration, modules, hooks and attributes, and of where its weights lie in memory.

    Of the numbers of the weights nothing is looked at. It takes some milliseconds.

    Example:
        >>> from depthdial.views.signature import signature
        >>> signature(dd.view(model, "full")) == signature(dd.view(model, "full"))
        True
        >>> signature(dd.view(model, "full")) == signature(dd.view(model, "0,5"))
        False
    """
    modules = [_module(name, module) for name, module in model.named_modules()]
    return hashlib.sha256(repr((config_text(model), modules)).encode()).hexdigest()


def _module(name: str, module: nn.Module) -> tuple[Any, ...]:
    tensors = [(key, _tensor(one)) for key, one in (*module._parameters.items(), *module._buffers.items())]
    told = [
        (key, _told(value))
        for key, value in sorted(module.__dict__.items())
        if key not in _ELSEWHERE and value is not None and not _is_a_view_s(key, value)
    ]
    return name, id(type(module)), tensors, told


def _is_a_view_s(name: str, value: Any) -> bool:
    """Whether an attribute is of a view itself: its own notes, and methods that ask it before weights are changed."""
    if type(value) is functools.partial:
        return getattr(value.func, "__module__", None) in _OWN_METHODS
    return name.startswith("depthdial_")


def _tensor(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype), str(tensor.device)


def _told(value: Any) -> str:
    """An attribute's value; of what cannot be told, its identity, which views of a model share."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return repr(_tensor(value) if value.layout == torch.strided else id(value))
    if isinstance(value, tuple | list):
        return repr([_told(one) for one in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(_told(one) for one in value))
    if isinstance(value, OrderedDict):  # of hooks, whose keys are numbers that are given once
        return repr([(None if isinstance(key, int) else _told(key), _told(one)) for key, one in value.items()])
    if isinstance(value, dict):
        return repr(sorted((_told(key), _told(one)) for key, one in value.items()))
    if isinstance(value, functools.partial):  # views bind those of their modules anew
        bound = [_told(one) for one in value.args if not isinstance(one, nn.Module)]
        return repr((_told(value.func), bound, _told(value.keywords)))
    if isinstance(value, types.MethodType):
        return repr(id(value.__func__))
    return repr(id(value))
