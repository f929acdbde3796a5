"""Savings of dropping a layer, for a search to weigh against its loss: layers, FLOPs or measured milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from depthdial.data.tasks import EncodedExample
from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import GREEDY
from depthdial.engine.session import Session
from depthdial.hf.architectures import decoder_stack
from depthdial.latency.costs import LayerCosts
from depthdial.measure.cost import model_cost
from depthdial.routes import Route
from depthdial.views.view import quiet_view

COSTS = ("layers", "flops", "ms")
_WARM_STEPS, _TIMED_STEPS = 3, 15


def layers_alike(n_layers: int) -> LayerCosts:
    return LayerCosts("layers", (1.0,) * n_layers, {})


def layer_flops(model: Any, context_tokens: int) -> LayerCosts:
    """FLOPs of each layer for one response token that sees `context_tokens` tokens, itself among them."""
    found = []
    for layer in model_cost(model).layers:
        seen = int(layer.in_sight(np.asarray(context_tokens)))
        found.append(layer.flops_per_token + layer.flops_per_token_pair * seen)
    return LayerCosts("flops", tuple(found), {"context_tokens": context_tokens})


def layer_ms(session: Session, example: EncodedExample) -> LayerCosts:
    """Measured milliseconds of each layer in a decoding step at batch size 1: the median of some steps, here and now.

    One token at a time behind the example's prompt, through every layer. The model's layers get no hooks: a view's do.
    """
    about = {"measured": f"median of {_TIMED_STEPS} decoding steps of one sequence", "device": session.device.type}
    return LayerCosts("ms", layer_times(session, example.prompt_ids), about)


def layer_times(session: Session, prompt: Sequence[int]) -> tuple[float, ...]:
    """(n_layers,) median milliseconds of each layer in decoding steps behind a prompt."""
    model = quiet_view(session.model, session.full)
    started, spent = [0.0] * session.n_layers, [[] for _ in range(session.n_layers)]

    def start(layer: int) -> Callable[..., None]:
        return lambda *_: started.__setitem__(layer, clock_sec(session.device))

    def stop(layer: int) -> Callable[..., None]:
        return lambda *_: spent[layer].append(clock_sec(session.device) - started[layer])

    for i, layer in enumerate(decoder_stack(model).layers):
        layer.register_forward_pre_hook(start(i))
        layer.register_forward_hook(stop(i))
    n_steps = min(_WARM_STEPS + _TIMED_STEPS, (session.context_tokens or 2**31) - 1)
    step_stamps(model, session, session.full, session.prefill_ids(with_room([prompt], session, n_steps)), n_steps)
    return tuple(1000 * statistics.median(times[_WARM_STEPS:] or times) for times in spent)


def step_stamps(model: Any, session: Session, route: Route, prefilled: Prefill, n_steps: int) -> list[float]:
    """The clock, in seconds, after the first token and after each of some decoding steps; answers do not end.

    Args:
        model: the session's, or a view of it with hooks.
    """
    stamps: list[float] = []
    decode_tokens(
        model,
        route,
        prefilled,
        Sampler.from_draws(GREEDY, None, (), len(prefilled.input_ids), n_steps + 1),
        max_new_tokens=n_steps + 1,
        pad_token_id=session.pad_token_id,
        on_tokens=lambda _: stamps.append(clock_sec(session.device)),
    )
    return stamps


def with_room(prompts: Sequence[Sequence[int]], session: Session, n_steps: int) -> list[Sequence[int]]:
    """Prompts, without the beginning of those that would leave no room for some steps."""
    context = session.context_tokens
    return list(prompts) if context is None else [prompt[-max(context - n_steps, 1) :] for prompt in prompts]
