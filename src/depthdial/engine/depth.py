"""The one idea of depth: which layers run for each prompt of a batch, and why; and a depth as people write it.

A route, its text, a share or a count of layers, a token policy, and whatever else assigns routes to prompts (a controller)
are all depths. What runs a model knows this protocol and nothing of who implements it.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from depthdial.engine.depth_numbers import named_route
from depthdial.engine.lossless import UNTOUCHED, Lossless
from depthdial.engine.prefill import Prefill, PrefillInParts
from depthdial.engine.session import Session
from depthdial.engine.speculation import Drafting
from depthdial.errors import InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.hf.architectures import count_layers
from depthdial.hf.prompts import warn_if_prompts_differ
from depthdial.routes import AnyRoute, RandomRoute, Route, require_depth
from depthdial.routes.families import listed_routes
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import as_policy
from depthdial.views.view import route_of

# Entry points of this group read a folder as a depth; each is named after the file that such a folder holds.
FOLDERS = "depthdial.depths"


@dataclass(frozen=True)
class Asked:
    """What a caller asks beside a depth.

    Attributes:
        prompt_depth: `full` or `route`.
        template: of the prompts, resolved.
        routes: to choose from; None for the depth's own.
    """

    prompt_depth: str = "full"
    template: str = "plain"
    routes: Any = None


@dataclass(frozen=True)
class Batch:
    """Prompts that run together.

    Attributes:
        ids: the tokens of each.
        keys: by which random rules draw: places in the whole list, or ids.
        full: a full pass over the prompts, where the caller has made one already.
        own: the pass that the depth's `prompts_in_parts` has begun, where the caller has made it.
    """

    ids: Sequence[Sequence[int]]
    keys: Sequence[Any]
    full: Prefill | None = None
    own: Prefill | None = None


@dataclass(frozen=True)
class Reason:
    """Why a prompt took its route.

    Attributes:
        predicted: quality of each route, by name.
        predicted_steps: decoding steps of each route's answer, by name.
        price: quality that a route had to be worth for each unit of cost.
    """

    predicted: Mapping[str, float]
    predicted_steps: Mapping[str, float]
    price: float


@dataclass(frozen=True)
class Assignment:
    """The routes of one batch.

    Attributes:
        routes: one a prompt; a token-wise depth in a route's place.
        full: the full pass over the batch's prompts that every route continues on; None where each route runs its own.
        reasons: one a prompt; empty where nothing was weighed.
        full_untouched: whether the full route runs without the model's adapters.
        session: what all run on; None: the caller's.
        drafting: what drafts the answers' tokens, of full routes; None for plain decoding.
        settle: to be told the decoding steps of the answers, once they are there; None where nobody asks for them.
    """

    routes: tuple[Running, ...]
    full: Prefill | None
    reasons: tuple[Reason, ...] = ()
    full_untouched: bool = False
    session: Session | None = None
    drafting: Drafting | None = None
    settle: Callable[[np.ndarray], None] | None = field(default=None, compare=False)

    def running(self, session: Session, route: Running) -> Session:
        """What a route runs on."""
        session = self.session or session
        return session.untouched if self.full_untouched and route.is_full else session

    def prefilled(self, session: Session, batch: Batch, members: Sequence[int], route: Running) -> Prefill:
        """The prompts of some members of the batch, ready to be continued on `route`."""
        if self.full is not None:
            return self.full.select(torch.tensor(members, device=session.device))
        assert isinstance(route, Route)
        return session.prefill_ids([batch.ids[m] for m in members], route)


class Depth(ABC):
    """What decides which layers run; a subclass of this is a depth wherever one is taken."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For rows and messages."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Of the model that it is for."""

    @abstractmethod
    def prepare(self, session: Session, asked: Asked) -> None:
        """Refuse what does not fit, before anything runs.

        Raises:
            InputError: if the depth does not fit the model, or what else is asked.
        """

    @abstractmethod
    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        """The routes of a batch of prompts, with the reason of each."""

    def prompts_in_parts(self, session: Session, prompts: Sequence[Sequence[int]], asked: Asked) -> PrefillInParts | None:
        """The pass over prompts that `assign` would begin with, for callers who make it in parts; None without one."""
        return None

    @staticmethod
    def parse(given: Any, model: Any, routes: Any = None) -> Depth:
        """What a depth stands for on a model: the one parser of depths.

        Args:
            given: a Route, its text, its layers, a share or a count of layers, such a number of a family
                (`routes.json:24`, `searched:80%`), `lossless` or `lossless:ROUTE` (see `Lossless`), a token policy, a
                Depth, or the folder of a controller or of gates.
            routes: what a number chooses from; None: the best known routes.

        Raises:
            InputError: for what is no depth, or does not fit the model.

        Example:
            >>> depth = Depth.parse("uls:50%", model)
            >>> str(depth), depth.n_layers
            ('0,2,5', 6)
        """
        n_layers = count_layers(model)
        lossless = Lossless.read(given)
        if lossless is not None:
            return LosslessDepth.of(lossless, model, n_layers)
        found = named_route(given, model, n_layers, routes)
        if found is not None:
            return RouteDepth(found)
        if isinstance(given, Depth):
            return given
        if isinstance(given, Route | RandomRoute):
            return RouteDepth(require_depth(given, n_layers))  # type: ignore[arg-type]
        if isinstance(given, str | os.PathLike):
            saved = read_folder(Path(given))
            return RouteDepth(Route.parse(str(given), n_layers)) if saved is None else saved
        if isinstance(given, tuple | range):
            return RouteDepth(Route(tuple(given), n_layers))
        if isinstance(given, nn.Module) and not callable(getattr(given, "policy", None)):
            raise _no_model(given)
        if isinstance(given, TokenDepth):
            return TokenwiseDepth(require_depth(given, n_layers))  # type: ignore[arg-type]
        if callable(given) or hasattr(given, "fingerprint") or callable(getattr(given, "policy", None)):
            return TokenwiseDepth(TokenDepth(as_policy(given), n_layers))
        raise InputError(f"{_TAKEN}{_short(given)}.")


@dataclass(frozen=True)
class RouteDepth(Depth):
    """One route for every prompt, or a random rule that draws one for each."""

    route: AnyRoute

    @property
    def name(self) -> str:
        return self.route.name

    @property
    def n_layers(self) -> int:
        return self.route.n_layers

    def prepare(self, session: Session, asked: Asked) -> None:
        """Warns:
        RouteWarning: for a route that the model's adapter was not trained for, or that was made for other prompts.
        """
        refuse_routes(asked.routes)
        warn_if_outside(session.given, self.route, stacklevel=4)
        warn_if_prompts_differ(session.given, self.route, asked.prompt_depth, stacklevel=4)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        full = (batch.full or session.prefill_ids(batch.ids)) if asked.prompt_depth == "full" else None
        return Assignment(tuple(self.route.for_sequence(key) for key in batch.keys), full)

    def __str__(self) -> str:
        return str(self.route)


@dataclass(frozen=True)
class TokenwiseDepth(Depth):
    """A policy that decides for each token; prompts run every layer."""

    depth: TokenDepth

    @property
    def name(self) -> str:
        return self.depth.name

    @property
    def n_layers(self) -> int:
        return self.depth.n_layers

    def prepare(self, session: Session, asked: Asked) -> None:
        refuse_routes(asked.routes)
        if asked.prompt_depth != "full":
            raise InputError(
                f"The token-wise depth {self.name!r} runs prompts at full depth, not prompt_depth={asked.prompt_depth!r}: "
                "use dd.token_view(model, policy, prompt_depth='route') for that."
            )
        self.depth.view(session.model)  # refuses what does not fit

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        return Assignment((self.depth,) * len(batch.ids), batch.full or session.prefill_ids(batch.ids))

    def __str__(self) -> str:
        return str(self.depth)


@dataclass(frozen=True)
class LosslessDepth(Depth):
    """Every layer for every prompt, with drafts of some of them (or copied) that make it faster.

    Attributes:
        route: that drafts; None where tokens are copied alone.
    """

    given: Lossless
    route: Route | None
    layers: int

    @classmethod
    def of(cls, given: Lossless, model: Any, n_layers: int) -> LosslessDepth:
        """What is asked, on a model.

        Raises:
            InputError: for a draft that is no one route, or that skips no layer, or for times of another model.
        """
        if given.draft_is_named:
            draft = Depth.parse(given.draft, model)
            if not isinstance(draft, RouteDepth) or not isinstance(draft.route, Route):
                raise InputError(
                    f"The draft {_short(given.draft)} is no one route: give one, such as depth='lossless:uls:50%'."
                )
            route: Route | None = draft.route
        else:
            route = given.known_route(model)
        if route is not None and route.is_full:
            raise InputError(
                f"The draft {route.name!r} runs all {n_layers} layers, as the check of its tokens does: give a route that "
                "skips some, such as depth='lossless:uls:50%'."
            )
        return cls(given.with_times(n_layers), route, n_layers)

    @property
    def name(self) -> str:
        return str(self.given)

    @property
    def n_layers(self) -> int:
        return self.layers

    def prepare(self, session: Session, asked: Asked) -> None:
        """Warns:
        RouteWarning: for a draft that the model's adapter was not trained for.
        """
        refuse_routes(asked.routes)
        if self.route is not None:
            warn_if_outside(session.given, self.route, stacklevel=4)
            warn_if_prompts_differ(session.given, self.route, "full", stacklevel=4)
        self._checking(session)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        own = self._checking(session)
        full = batch.full if batch.full is not None and own is session else own.prefill_ids(batch.ids)
        draft = None if own is session else session.model
        drafting = self.given.drafting(self.route, session.given, draft)
        return Assignment((session.full,) * len(batch.ids), full, session=own, drafting=drafting)

    def _checking(self, session: Session) -> Session:
        return session.untouched if self.given.verify == UNTOUCHED else session

    def __str__(self) -> str:
        return self.name


def refuse_routes(routes: Any) -> None:
    """InputError for routes to choose from, where nothing does."""
    if routes is not None:
        raise InputError(
            "The option routes= says what a depth in numbers, such as 0.5, is chosen from: leave it out, or give a number."
        )


_TAKEN = "depth is a route such as 'uls:50%', a Route, a share of the layers such as 0.5, or a controller, not "


def read_depths(given: Any, model: Any, n_layers: int) -> tuple[Any, ...]:
    """The depths of an argument `routes`: `listed_routes`, with what a number or a controller's folder means on the model.

    Raises:
        InputError: for any other type.
    """
    return listed_routes(given, n_layers, functools.partial(_measured, model=model, n_layers=n_layers))


def _measured(given: Any, model: Any, n_layers: int) -> Any:
    saved = read_folder(Path(given)) if isinstance(given, str) else None
    return named_route(given, model, n_layers) if saved is None else saved


@functools.cache
def _folder_readers() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=FOLDERS)}


def read_folder(folder: Path) -> Depth | None:
    """The depth that was saved in a folder; None for what is no such folder."""
    try:
        kind = next((name for name in _folder_readers() if (folder / name).is_file()), None)
    except OSError:  # a long list of layers is no file name
        return None
    return None if kind is None else _folder_readers()[kind].load()(folder)


def _no_model(model: nn.Module) -> InputError:
    kind, route = type(model).__name__, route_of(model)
    if route is None:
        return InputError(f"{_TAKEN}a model ({kind}).")
    return InputError(f"{_TAKEN}a view ({kind}): give the view's own route, depth={str(route)!r}.")


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
