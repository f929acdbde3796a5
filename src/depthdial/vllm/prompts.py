"""Prompts at full depth in vLLM: layers outside the route run for prompt tokens and are skipped for those of answers.

vLLM holds keys and values of all layers. A prompt's tokens fill all of them; an answer's tokens fill the route's. A token
of an answer reads, in a layer of the route, what the prompt and the answer before it wrote there, so that nothing is
missing. A step of answers alone calls the layers of the route and no other. A step that also has prompt tokens runs every
layer for all tokens, as vLLM's attention takes a step whole, and puts back the states of the answers' tokens after each
skipped layer: what that layer wrote to the cache for them is never read.

So blocks that hold answers must not be taken for a later prompt (no prefix caching), and a step is not the same graph each
time (no compilation). A request that is preempted and computed again has its prompt at full depth and its answer on the
route, as before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.vllm import steps


@dataclass
class Step:
    """The step that is running.

    Attributes:
        answers: places in the step of tokens of answers; None while no token is known to be one.
        is_answers_alone: whether no token is of a prompt.
    """

    answers: torch.Tensor | None = None
    is_answers_alone: bool = False

    def begin(self, is_answer: np.ndarray | None, device: torch.device) -> None:
        """Take note of which tokens of a step are of answers; None for a step of no requests, which runs every layer."""
        self.answers, self.is_answers_alone = None, False
        if is_answer is not None and is_answer.any():
            self.is_answers_alone = bool(is_answer.all())
            self.answers = None if self.is_answers_alone else torch.from_numpy(np.flatnonzero(is_answer)).to(device)


def run_for_prompts_alone(model: nn.Module, route: Route, vllm_config: Any) -> None:
    """Have the layers outside a route run for the tokens of prompts alone.

    Args:
        model: as vLLM loaded it, with all layers.
    """
    layers = _decoder_layers(model, route.n_layers)
    step = Step()
    for index in route.skipped:
        layer = layers[index]
        layer.forward = _skipping(layer, step)
    forward, device = model.forward, next(model.parameters()).device
    steps.watch()

    @functools.wraps(forward)
    def begun(*args: Any, **kwargs: Any) -> Any:
        step.begin(steps.answer_tokens(), device)
        return forward(*args, **kwargs)

    model.forward = begun


def _decoder_layers(model: nn.Module, n_layers: int) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers and _has_states(m[0])]
    if len(found) != 1:
        raise InputError(
            f"vLLM's {type(model).__name__} has no single list of {n_layers} layers that pass hidden states on: set the "
            "prompt depth to 'route'."
        )
    return found[0]


def _has_states(layer: nn.Module) -> bool:
    return "hidden_states" in inspect.signature(layer.forward).parameters


def _skipping(layer: nn.Module, step: Step) -> Callable[..., Any]:
    """A forward that leaves the states of answers' tokens as they were.

    vLLM's layers take hidden states and give them back, or take and give (hidden states, residual), whose sum is the state;
    a first layer is given no residual. Norms write into both in place, so what is put back is copied first.
    """
    forward = layer.forward
    signature = inspect.signature(forward)
    is_pair = "residual" in signature.parameters

    @functools.wraps(forward)
    def skipping(*args: Any, **kwargs: Any) -> Any:
        if step.answers is None and not step.is_answers_alone:
            return forward(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        hidden, residual = given["hidden_states"], given.get("residual")
        if step.is_answers_alone:
            return (hidden, residual) if is_pair else hidden
        kept = [None if part is None else part[step.answers] for part in (hidden, residual)]
        out = forward(*args, **kwargs)
        for part, state in zip(out if is_pair else (out,), kept, strict=False):
            part[step.answers] = 0 if state is None else state
        return out

    return skipping
