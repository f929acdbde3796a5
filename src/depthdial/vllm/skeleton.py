"""Checks of a route on a configuration alone: the model is built without weights, and cut as a view is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.hf.architectures import cut_config, decoder_stack, why_not_saved
from depthdial.hf.load import auto_class
from depthdial.routes import Route
from depthdial.views.view import quiet_view
from depthdial.vllm.request import Request


@dataclass(frozen=True)
class Served:
    """A route of one model, as vLLM's processes hand it on inside the model's configuration.

    Attributes:
        prompt_depth: `full` or `route`.
        list_name: last name of the path to the list of layers, such as `layers` or `h`.
    """

    route: Route
    prompt_depth: str
    list_name: str

    def to_json(self) -> dict[str, Any]:
        return {"layers": list(self.route.layers), "n_layers": self.route.n_layers} | {
            name: getattr(self, name) for name in ("prompt_depth", "list_name")
        }

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Served:
        route = Route(tuple(fields["layers"]), fields["n_layers"])
        return cls(route, fields["prompt_depth"], fields["list_name"])


def served(config: Any, request: Request) -> tuple[Served, Any]:
    """The route that vLLM is to serve of a model, and the configuration of the model that it is to build.

    That of the route's layers alone where prompts run the route too; the whole model's otherwise.

    Args:
        config: of transformers; it is not changed.

    Raises:
        InputError: if the route does not fit the model, or the model has no layers that can be skipped.
    """
    model = _skeleton(config)
    stack = decoder_stack(model)
    route = request.on(stack.n_layers)
    found = Served(route, request.prompt_depth, stack.path[-1])
    if route.is_full or request.prompt_depth == "full":
        return found, config
    shallow = quiet_view(model, route, check=False)
    reason = why_not_saved(shallow)
    if reason is not None:
        raise InputError(
            f"vLLM cannot build a {type(model).__name__} of {len(route)} layers, since {reason}: set the prompt depth to "
            "'full'."
        )
    return found, cut_config(config, route.layers)[id(config)]


def _skeleton(config: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if auto_class(config) is not AutoModelForCausalLM:
        raise InputError(
            f"A {type(config).__name__} does not describe a text-only decoder: serve a route of a causal language model."
        )
    with torch.device("meta"), no_init_weights():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))
