"""The weights that train: an adapter on a view, which leaves the model it was made of as it is, or a copy of them all."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.hf.architectures import decoder_stack, unwrap
from depthdial.routes import Route
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.depth.start import Start
from depthdial.train.targets import linear_targets, unloadable
from depthdial.views.view import quiet_view


@contextmanager
def student(
    model: Any, routes: Sequence[Route], settings: FinetuneSettings, *, in_place: bool, start: Start | None = None
) -> Iterator[Any]:
    """What trains, in place of `model`, which is the same afterwards unless `in_place`.

    Only layers that some route runs are trained. An adapter (`lora`) is put on a view of the whole model: it shares the
    frozen weights, and the model itself has no adapter. With `full` the weights are copied, in float32. `start` is the
    adapter that another one begins as.

    Raises:
        InputError: for a model with an adapter, one whose adapter would not load again, and a start on other modules.
    """
    with _unchanged(model) as base:
        skipped = sorted(set(range(decoder_stack(base).n_layers)).difference(*(route.layers for route in routes)))
        if settings.method == "lora":
            adapted = _with_lora(base, skipped, settings)
            if start is not None:
                start.put_into(adapted)
            yield adapted
        else:
            yield _trainable(base if in_place else copy.deepcopy(base), skipped)


@contextmanager
def frozen(model: Any) -> Iterator[Any]:
    """A view of the whole model with no weight that trains, for what is trained beside it."""
    with _unchanged(model) as base:
        yield quiet_view(base, range(decoder_stack(base).n_layers)).requires_grad_(False)


def refuse_adapted(model: Any) -> None:
    """InputError for a model that has an adapter."""
    if hasattr(model, "peft_config") or getattr(unwrap(model), "_hf_peft_config_loaded", False):
        raise InputError(
            "The model has an adapter already: merge it (merge_and_unload) and train on the result, or load the model "
            "without it and train on from it (--start-from)."
        )


@contextmanager
def _unchanged(model: Any) -> Iterator[Any]:
    """The model inside PEFT's wrapper; afterwards its parameters need gradients, and its modules have modes, as before."""
    refuse_adapted(model)
    base = unwrap(model)
    modes = [(module, module.training) for module in base.modules()]
    needed_gradient = {name: p.requires_grad for name, p in base.named_parameters()}
    try:
        yield base
    finally:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(needed_gradient[name])
        for module, training in modes:
            module.training = training


def _trainable(model: Any, skipped: Sequence[int]) -> Any:
    if model.dtype in (torch.float16, torch.bfloat16):
        model.float()  # an update is often smaller than a half's rounding; mixed precision still computes in halves
    model.requires_grad_(True)
    for i in skipped:
        decoder_stack(model).layers[i].requires_grad_(False)
    return model


def _with_lora(base: Any, skipped: Sequence[int], settings: FinetuneSettings) -> Any:
    lost: set[str] = set()
    for _ in range(2):  # before training, and not after it
        adapted = _adapted(base, linear_targets(base, skipped, without=lost), settings)
        lost = unloadable(adapted, base)
        if not lost:
            return adapted
    raise InputError(
        f"An adapter of {type(base).__name__} would not load again (PEFT loses {min(lost)}): use method='full'."
    )


def _adapted(base: Any, targets: Sequence[str], settings: FinetuneSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    shell = quiet_view(base, range(decoder_stack(base).n_layers))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.resolved.lora_alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nothing that a user can change
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")  # of experts that are not adapted
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # of Conv1D, which PEFT then does right
        return get_peft_model(shell, config)
