"""Target modules of an adapter: plain linear ones that the model calls, in a form that loads again."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from depthdial.errors import InputError, one_line
from depthdial.hf.architectures import decoder_stack
from depthdial.views.probe import probe_tokens
from depthdial.views.view import quiet_view


def linear_targets(base: Any, skipped: Sequence[int], without: Collection[str] = ()) -> list[str]:
    """Names of the linear modules to adapt: short ones for all layers, whole paths where some layers are left out.

    Only modules that are called as linear ones: a router that gives its choice of experts beside the scores, or a weight
    that a block reads past the module, would fail in training or stay as it was. Experts that are held as one tensor have
    no module. Found by running a few tokens, and by class alone where the model cannot run (on the meta device). Places
    (paths with their numbers left out) in `without` are not adapted. InputError if there are none.
    """
    stack = decoder_stack(base)
    prefix = ".".join(stack.path)
    called = _called(base)
    found = [
        (f"{prefix}.{i}.{name}", name)
        for i, layer in enumerate(stack.layers)
        if i not in skipped
        for name, module in layer.named_modules()
        if _is_linear(module) and (place := place_of(f"{prefix}.{i}.{name}")) not in without
        if (type(module) is nn.Linear or _is_conv(module) if called is None else place in called)
    ]
    if not found:
        raise InputError("The model's layers hold no linear modules that an adapter could be put on: use method='full'.")
    ends = tuple({f".{name}" for _, name in found})
    is_part = len(found) < sum(
        f".{whole}".endswith(ends) for whole, _ in base.named_modules()
    )  # a vision tower has them too
    return sorted({whole if skipped or is_part else name for whole, name in found})


def place_of(name: str) -> str:
    """A module's path without its numbers: the same for its like in all layers, and for all experts."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def unloadable(adapted: Any, base: Any) -> set[str]:
    """Places whose adapters a folder of `adapted` (PEFT's wrapper) would lose; InputError if it cannot be loaded at all.

    transformers renames some modules when a checkpoint is loaded, and PEFT renames those of an adapter along, sometimes to
    names that are not there. Saves and loads the adapter as it is before training, onto a view of the base.
    """
    from peft import PeftModel

    shell = quiet_view(base, range(decoder_stack(base).n_layers))
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            adapted.save_pretrained(folder)
            PeftModel.from_pretrained(shell, folder)
    except Exception as error:  # whatever PEFT raises over names and shapes
        reason = one_line(error).rstrip(".")
        raise InputError(
            f"An adapter of {type(base).__name__} would not load again ({type(error).__name__}: {reason}): use "
            "method='full'."
        ) from error
    text = " ".join(str(one.message) for one in said if "missing adapter keys" in str(one.message))
    names = re.findall(r"base_model\.model\.([\w.]+?)\.lora_", text)
    return {place_of(name) for name in names}


def _called(base: Any) -> set[str] | None:
    """Places of modules that a pass calls and that give one tensor of their width; None if no pass can be run."""
    shell = quiet_view(base, range(decoder_stack(base).n_layers)).eval()
    right: set[str] = set()
    wrong: set[str] = set()

    def listen(name: str) -> Any:
        def hook(module: Any, _: Any, output: Any) -> None:
            width = getattr(module, "out_features", None) or getattr(module, "nf", None)
            is_plain = isinstance(output, torch.Tensor) and output.shape[-1] == width
            (right if is_plain else wrong).add(place_of(name))

        return hook

    for name, module in shell.named_modules():
        if _is_linear(module):
            module.register_forward_hook(listen(name))
    try:
        with torch.no_grad():
            shell(**probe_tokens(base), use_cache=False)
    except Exception:
        return None
    return right - wrong


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv(module)


def _is_conv(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
