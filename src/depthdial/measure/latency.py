"""Savings of dropping a layer, for a search to weigh against its loss: layers, FLOPs or measured milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.prefill import clock_sec, continue_on
from depthdial.engine.session import Runner
from depthdial.hf.architectures import decoder_stack
from depthdial.measure.cost import model_cost
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.view import quiet_view

COSTS = ("layers", "flops", "ms")
_WARM_STEPS, _TIMED_STEPS = 3, 15


@dataclass(frozen=True)
class LayerCosts:
    """The cost of every layer in one unit.

    Attributes:
        unit: `layers`, `flops` (per response token) or `ms` (per decoding step, measured).
        by_layer: (n_layers,), all above 0.
        about: JSON-ready, how they were found.
    """

    unit: str
    by_layer: tuple[float, ...]
    about: Mapping[str, Any]

    def of(self, route: Route) -> float:
        return sum(self.by_layer[i] for i in route.layers)

    def saved(self, dropped: Sequence[int]) -> float:
        """What dropping these layers saves, in units of the costliest layer: their number, where all cost the same."""
        most = max(self.by_layer)
        return sum(self.by_layer[i] / most for i in dropped)

    def rate(self, harm: float, dropped: Sequence[int]) -> float:
        """Harm for each unit of cost that dropping these layers saves; to be ordered by, the smallest first.

        A drop that does good (`harm` below 0) does the more of it the more it saves. Where all layers cost the same, it
        orders sets of as many layers as `harm` does.
        """
        saved = self.saved(dropped)
        return harm / saved if harm > 0 else harm * saved

    def record(self, routes: Sequence[Route]) -> dict[str, Any]:
        """For a family's `made_by`: the unit, the cost of each layer and of each route."""
        return {
            "unit": self.unit,
            **self.about,
            "by_layer": list(self.by_layer),
            "routes": {route.name: self.of(route) for route in routes},
        }


def layers_alike(n_layers: int) -> LayerCosts:
    return LayerCosts("layers", (1.0,) * n_layers, {})


def layer_flops(model: Any, context_tokens: int) -> LayerCosts:
    """FLOPs of each layer for one response token that sees `context_tokens` tokens, itself among them."""
    found = []
    for layer in model_cost(model).layers:
        seen = int(layer.in_sight(np.asarray(context_tokens)))
        found.append(layer.flops_per_token + layer.flops_per_token_pair * seen)
    return LayerCosts("flops", tuple(found), {"context_tokens": context_tokens})


def layer_ms(runner: Runner, example: EncodedExample) -> LayerCosts:
    """Measured milliseconds of each layer in a decoding step at batch size 1: the median of some steps, here and now.

    One token at a time behind the example's prompt, through every layer. The model's layers get no hooks: a view's do.
    """
    model = quiet_view(runner.model, runner.full)
    started, spent = [0.0] * runner.n_layers, [[] for _ in range(runner.n_layers)]

    def start(layer: int) -> Callable[..., None]:
        return lambda *_: started.__setitem__(layer, clock_sec(runner.device))

    def stop(layer: int) -> Callable[..., None]:
        return lambda *_: spent[layer].append(clock_sec(runner.device) - started[layer])

    for i, layer in enumerate(decoder_stack(model).layers):
        layer.register_forward_pre_hook(start(i))
        layer.register_forward_hook(stop(i))
    _decode_steps(model, runner, example)
    medians = [1000 * statistics.median(times[_WARM_STEPS:] or times) for times in spent]
    about = {"measured": f"median of {_TIMED_STEPS} decoding steps of one sequence", "device": runner.device.type}
    return LayerCosts("ms", tuple(medians), about)


def _decode_steps(model: Any, runner: Runner, example: EncodedExample) -> None:
    # Of a prompt that nearly fills the context the beginning is left out, so that all steps have room.
    n_steps, context = _WARM_STEPS + _TIMED_STEPS, runner.context_tokens
    if context is not None:
        n_steps = min(n_steps, context - 1)
    most = None if context is None else context - n_steps
    prompt = example.prompt_ids if most is None else example.prompt_ids[-most:]
    prefilled = runner.prefill_ids([prompt])
    cache, mask = prefilled.cache_for(runner.full), prefilled.attention_mask
    token = prefilled.logits[:, -1].argmax(-1, keepdim=True)
    with as_is(runner.device):
        for _ in range(n_steps):
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
            token = continue_on(model, cache, token, mask).logits[:, -1].argmax(-1, keepdim=True)
