"""Which route each prompt of a batch takes, and on what: a fixed route, a rule, or a controller that reads the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from depthdial.control.card import routes_of
from depthdial.control.controller import OnlineController
from depthdial.control.prediction import Prediction
from depthdial.engine.depths import Controller
from depthdial.engine.session import Runner
from depthdial.errors import InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.measure.features import features_of, watched_prefill
from depthdial.routes import AnyRoute, Route
from depthdial.views.prompted import Prefill
from depthdial.views.tokens.depth import Depth, TokenDepth


@dataclass(frozen=True)
class Choice:
    """The routes of one batch.

    Attributes:
        routes: one a prompt; a token-wise depth in a route's place.
        full: the full pass over the batch's prompts that every route continues on; None where each route runs its own.
        predicted: quality and steps that a controller predicted of the routes called `names`, and the price of each prompt
            that they were weighed at; None without a controller.
        settle: to be told the decoding steps of the answers, once they are there; None where nobody keeps a running budget.
    """

    routes: tuple[Depth, ...]
    full: Prefill | None
    predicted: Prediction | None = None
    names: tuple[str, ...] = ()
    prices: tuple[float, ...] = ()
    settle: Callable[[np.ndarray], None] | None = None

    def running(self, runner: Runner, route: Depth) -> Runner:
        """What a route runs on: with a controller the full route is the untouched full model."""
        return runner.untouched if self.predicted is not None and route.is_full else runner

    def prefilled(self, runner: Runner, prompts: Sequence[Sequence[int]], members: Sequence[int], route: Depth) -> Prefill:
        """The prompts of some members of the batch, ready to be continued on `route`."""
        if self.full is not None:
            return self.full.select(torch.tensor(members, device=runner.device))
        assert isinstance(route, Route)
        return runner.prefill_ids([prompts[m] for m in members], route)

    def why(self, member: int) -> dict[str, Any]:
        """Of one prompt, for its Generation."""
        if self.predicted is None:
            return {}
        return {
            "predicted": dict(zip(self.names, self.predicted.quality[member].tolist(), strict=True)),
            "predicted_steps": dict(zip(self.names, self.predicted.steps[member].tolist(), strict=True)),
            "price": self.prices[member],
        }


# From the token ids of a batch's prompts and their places in the whole list.
Chooser = Callable[[Sequence[Sequence[int]], Sequence[int]], Choice]


def choosing(
    depth: AnyRoute | TokenDepth | Controller, runner: Runner, routes: Any, prompt_depth: str, template: str
) -> Chooser:
    """What `generate` does at a depth.

    Raises:
        InputError: for a depth that does not fit the model or the other arguments.

    Warns:
        RouteWarning: for a route that the model's adapter was not trained for.
    """
    if isinstance(depth, Controller):
        return _controlled(depth, runner, routes, prompt_depth, template)
    if isinstance(depth, TokenDepth):
        return _tokenwise(depth, runner, prompt_depth)
    return _fixed(depth, runner, prompt_depth)


def _fixed(route: AnyRoute, runner: Runner, prompt_depth: str) -> Chooser:
    warn_if_outside(runner.given, route, stacklevel=5)

    def choose(prompts: Sequence[Sequence[int]], places: Sequence[int]) -> Choice:
        full = runner.prefill_ids(prompts) if prompt_depth == "full" else None
        return Choice(tuple(route.for_sequence(i) for i in places), full)

    return choose


def _tokenwise(depth: TokenDepth, runner: Runner, prompt_depth: str) -> Chooser:
    if prompt_depth != "full":
        raise InputError(
            f"The token-wise depth {depth.name!r} runs prompts at full depth, not prompt_depth={prompt_depth!r}: use "
            "dd.token_view(model, policy, prompt_depth='route') for that."
        )
    return lambda prompts, places: Choice((depth,) * len(places), runner.prefill_ids(prompts))


def _controlled(depth: Controller, runner: Runner, routes: Any, prompt_depth: str, template: str) -> Chooser:
    controller = depth.controller if isinstance(depth, OnlineController) else depth
    controller.check(runner.given)
    if routes is not None:
        controller.check_routes(routes_of(routes, runner.n_layers))
    if controller.card.prompt_depth != prompt_depth:
        own = controller.card.prompt_depth
        raise InputError(f"The controller was fitted with prompt_depth={own!r}: generate with that, or fit another one.")
    if controller.card.template != template:
        own = controller.card.template
        raise InputError(f"The controller was fitted to prompts of template {own!r}: give template={own!r}.")
    spec, names = controller.card.features, tuple(route.name for route in controller.routes)

    def choose(prompts: Sequence[Sequence[int]], places: Sequence[int]) -> Choice:
        prefilled = watched_prefill(runner, prompts, spec)
        predicted = controller.predict(features_of(prefilled, spec))
        picked, prices = depth.pick_at(predicted)
        taken = tuple(controller.routes[i] for i in picked.tolist())
        settle = partial(depth.settle, predicted, picked) if isinstance(depth, OnlineController) else None
        return Choice(taken, prefilled if prompt_depth == "full" else None, predicted, names, prices, settle)

    return choose
