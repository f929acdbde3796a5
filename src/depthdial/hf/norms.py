"""Norms of transformers' models that PyTorch computes in one kernel where their own code takes eight."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPSILONS = ("variance_epsilon", "eps")
# How far results may be off, of the largest.
_CLOSE = {torch.float32: 1e-5}
_CLOSE_OF_HALVES = 0.01


def fuse_norms(view: nn.Module) -> int:
    """Have the RMS norms of a view run as `torch.nn.functional.rms_norm`; how many do.

    Those of a class whose result is another (Gemma's weights count from 1) stay as they are: each class is tried first.
    Results differ in rounding: fp16 and bf16 are rounded once, where transformers rounds before it multiplies by the weight.

    Args:
        view: a view of a model, never the user's model.

    Example:
        >>> from depthdial.hf.norms import fuse_norms
        >>> fuse_norms(dd.view(model, "full")), fuse_norms(dd.view(model, "0,3"))  # two a layer, and the final one
        (13, 5)
    """
    tried: dict[Any, bool] = {}
    n_fused = 0
    for module in view.modules():
        eps = _epsilon(module)
        if eps is None:
            continue
        kind = type(module), next(module.parameters()).dtype
        if kind not in tried:
            tried[kind] = _is_the_same(module, eps)
        if tried[kind]:
            module.__dict__["forward"] = functools.partial(_forward, module, eps)
            n_fused += 1
    return n_fused


def _epsilon(module: Any) -> float | None:
    """Of an RMS norm with nothing but a weight; None for another module."""
    if not type(module).__name__.endswith("RMSNorm") or set(module._parameters) != {"weight"}:
        return None
    if module._buffers or module._modules or module._forward_hooks or module._forward_pre_hooks:
        return None
    weight = module._parameters["weight"]
    if type(weight) is not nn.Parameter or weight.dim() != 1 or weight.device.type == "meta" or "forward" in module.__dict__:
        return None
    found = [getattr(module, name) for name in _EPSILONS if isinstance(getattr(module, name, None), float)]
    return found[0] if found else None


def _forward(module: Any, eps: float, hidden_states: torch.Tensor) -> torch.Tensor:
    """In place of a norm's own forward."""
    weight = module._parameters["weight"]
    if hidden_states.dtype != weight.dtype or hidden_states.shape[-1:] != weight.shape:
        return type(module).forward(module, hidden_states)
    return functional.rms_norm(hidden_states, weight.shape, weight, eps)


def _is_the_same(module: Any, eps: float) -> bool:
    weight = module.weight
    generator = torch.Generator().manual_seed(0)
    numbers = 3 * torch.randn(4, len(weight), generator=generator)
    numbers[0] *= 1e-3  # where the epsilon counts
    numbers = numbers.to(weight.device, weight.dtype)
    try:
        with torch.no_grad():
            stock, fused = (one.float() for one in (type(module).forward(module, numbers), _forward(module, eps, numbers)))
    except Exception:  # it takes something else
        return False
    off = (stock - fused).abs().amax(-1) / stock.abs().amax(-1).clamp(min=1e-6)
    return bool((off <= _CLOSE.get(weight.dtype, _CLOSE_OF_HALVES)).all())
