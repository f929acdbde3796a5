"""The untouched full model, one switch away: run a model as if its adapters were not there.

PEFT's own `disable_adapter` changes which weights need gradients and turns on afterwards what was off before, so here only
its switch on every adapted module is set, and put back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap

# What PEFT's modules look at in every forward pass; on a module that was never switched it is the class's.
_SWITCH = "_disable_adapters"


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Inside, `model` computes exactly what its base computes without any adapter; afterwards it is as it was.

    For PEFT's wrapper, the model inside it, one that transformers added adapters to, and a view; for a model without
    adapters (none, or merged and unloaded) it does nothing. May be nested, and an exception ends it like any other end. The
    switch is on the model itself, so other threads that use the model at that time see it too. Views are snapshots: one made
    inside stays untouched for good, and one made before keeps its adapters.

    Everything runs on the base's own tensors as they are. PEFT has frozen them, and PyTorch may round the last bit of a
    product with a frozen weight otherwise than with one that needs a gradient.

    Raises:
        InputError: if the base cannot be restored exactly: an adapter is merged into the weights, trains the model's own
            biases, or is of a kind without a switch.

    Example:
        >>> adapted, _ = dd.load(folder / "model", adapter=folder / "adapter")
        >>> with dd.untouched(adapted):
        ...     base = dd.generate(adapted, tokenizer, "the cat", max_new_tokens=4)
    """
    base = unwrap(model)
    refuse_without_switch(base)
    modules = adapter_modules(base)
    before = [module.__dict__.get(_SWITCH) for module in modules]
    try:
        for module in modules:
            module.__dict__[_SWITCH] = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            if value is None:
                module.__dict__.pop(_SWITCH, None)
            else:
                module.__dict__[_SWITCH] = value


def switch_off(view: nn.Module) -> None:
    """Switch the adapters of a view off for good; its base keeps them, and so do other views."""
    for module in adapter_modules(view):
        module.__dict__[_SWITCH] = True


def adapter_modules(model: nn.Module) -> list[Any]:
    """The modules of a model that PEFT has put in the place of others; none for a model without adapters."""
    kinds = _adapter_kinds()  # every view asks: no walk where PEFT is not loaded
    return [module for module in model.modules() if isinstance(module, kinds)] if kinds else []


def has_adapters_on(model: Any) -> bool:
    """Whether a model computes anything else than its untouched base: it has adapters, and not all are switched off."""
    base = unwrap(model)
    return any(not module.disable_adapters for module in adapter_modules(base)) or _has_adaption_prompts(base)


def is_adapter_module(module: object) -> bool:
    return isinstance(module, _adapter_kinds())


def _adapter_kinds() -> tuple[type, ...]:
    if "peft" not in sys.modules:
        return ()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return BaseTunerLayer, AuxiliaryTrainingWrapper


def _has_adaption_prompts(model: nn.Module) -> bool:
    # LLaMA-Adapter's attention: an adapter inside the layers, but not one of the modules with a switch.
    return any(type(module).__module__.startswith("peft.tuners.adaption_prompt") for module in model.modules())


def refuse_without_switch(base: Any) -> None:
    """InputError if a model's adapters cannot be switched off exactly."""
    for name, method in base.__dict__.get("peft_config", {}).items():
        if getattr(method, "bias", "none") not in ("none", None, False):  # PEFT writes them over the base's own
            raise InputError(
                f"The adapter {name!r} trains the model's own biases, so it cannot be switched off exactly: load the base "
                "again without it."
            )
    if _has_adaption_prompts(base):
        raise InputError("Adaption prompts cannot be switched off exactly: load the base again without them.")
    if any(getattr(module, "merged", False) for module in adapter_modules(base)):
        raise InputError(
            "An adapter is merged into the model's weights, which cannot be restored exactly: load the base again without "
            "merging."
        )
