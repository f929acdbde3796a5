"""The depths that requests may name, and the model ids that go with them.

A request never names a file or a folder: its text is read by the grammar of routes, as a number, or as one of the names that
the server was started with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from depthdial.control.choosing import ChoosingDepth
from depthdial.control.controller import SequenceController
from depthdial.engine.depth import Asked, Assignment, Batch, Depth, LosslessDepth, RouteDepth, refuse_routes
from depthdial.engine.depth_numbers import SEARCHED, number_in
from depthdial.engine.lossless import NAME as LOSSLESS
from depthdial.engine.lossless import Lossless
from depthdial.engine.prefill import PrefillInParts
from depthdial.engine.session import Session
from depthdial.engine.speculation import LOOKUP
from depthdial.errors import InputError
from depthdial.hf.adapter import adapter_card
from depthdial.hf.architectures import count_layers
from depthdial.hf.known_routes import best_known_routes, route_within, searched_routes
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.serve.errors import ApiError

CONTROLLER, FULL = "controller", "full"
_MOST_TEXT = 500
_KEPT = 256


@dataclass(frozen=True)
class UntouchedDepth(Depth):
    """Every layer without the model's adapters: what `full` means to a server of an adapted model."""

    layers: int

    @property
    def name(self) -> str:
        return FULL

    @property
    def n_layers(self) -> int:
        return self.layers

    def prepare(self, session: Session, asked: Asked) -> None:
        refuse_routes(asked.routes)
        _ = session.untouched  # refuses adapters that cannot be switched off

    def prompts_in_parts(self, session: Session, prompts: Sequence[Sequence[int]], asked: Asked) -> PrefillInParts:
        return session.untouched.prefill_in_parts(prompts)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        own = session.untouched
        return Assignment((session.full,) * len(batch.ids), batch.own or own.prefill_ids(batch.ids), session=own)


@dataclass(frozen=True)
class Chosen:
    """The depth of a request.

    Attributes:
        label: as requests, metrics and usage name it.
        depth: for `Engine.submit`.
        template: of raw prompts: what a controller was fitted to; it is not applied to them.
        prompt_depth: how its prompts run.
    """

    label: str
    depth: Depth
    template: str = "plain"
    prompt_depth: str = "full"

    @property
    def route(self) -> Route | None:
        """The one route of all its answers; None where answers differ."""
        if isinstance(self.depth, RouteDepth):
            return self.depth.route if isinstance(self.depth.route, Route) else None
        if isinstance(self.depth, LosslessDepth | UntouchedDepth):
            return Route(tuple(range(self.depth.n_layers)), self.depth.n_layers, FULL)
        return None


@dataclass
class Depths:
    """What requests may ask for.

    Args:
        model: as `dd.load` gives it, with or without an adapter.
        name: the model's id, such as `smollm2-135m`.
        families: of routes that the server was started with; numbers such as 80% are chosen from the first of them, or else
            from the adapter's routes or the best known ones.
        controller: what `controller` stands for.
        default: depth of requests that name none.
        efforts: text of a depth by `reasoning_effort`.
        are_usual: nobody asked for just these efforts, so a share below the cheapest known route stands for that route.

    Raises:
        InputError: for a controller, a default or an effort that does not fit the model.

    Example:
        >>> family = dd.RouteFamily("mine", 6, (dd.Route((0, 1, 5), 6, "mine:3"), dd.Route.parse("full", 6)))
        >>> depths = Depths(model, "tiny", families=[family])
        >>> depths.choose("tiny:mine-3").label, str(depths.choose("tiny:50%").depth)
        ('mine-3', '0-1,5')
    """

    model: Any
    name: str
    families: Sequence[RouteFamily] = ()
    controller: SequenceController | None = None
    default: str = FULL
    efforts: Mapping[str, str] = field(default_factory=dict)
    are_usual: bool = False

    def __post_init__(self) -> None:
        self.n_layers = count_layers(self.model)
        card = adapter_card(self.model)
        self._is_adapted = card is not None
        own = [] if card is None else [RouteFamily(card.kind, card.n_layers, card.routes)]
        known = None if own or self.families else searched_routes(self.model)
        found = [RouteFamily(SEARCHED, self.n_layers, known)] if known else []
        self._families = {_id_of(one.name): _fitting(one, self.n_layers) for one in (*self.families, *own, *found)}
        first = next(iter(self._families.values()), None)
        shallow = None if first is None else [route for route in first if not route.is_full]
        self._known = (*shallow, self._full) if shallow else best_known_routes(self.model)
        if self.controller is not None:
            self.controller.check(self.model)
        self._read: dict[str, Chosen] = {}
        if self.are_usual:
            least = min(map(len, self._known))
            self.efforts = {
                effort: str(least) if (number_in(text) or 1.0) * self.n_layers < least else text
                for effort, text in self.efforts.items()
            }
        for text in (self.default, *self.efforts.values()):
            self.read(text)

    @property
    def _full(self) -> Route:
        return Route(tuple(range(self.n_layers)), self.n_layers, FULL)

    def choose(self, model_id: str | None, depth: str | float | None = None, effort: str | None = None) -> Chosen:
        """The depth of a request, by its model id, its field `depth` or its `reasoning_effort`.

        Raises:
            ApiError: for another model, a depth that is none, an effort without one, or two of the three.
        """
        base, suffix = self._split(model_id)
        given = {"model": suffix or None, "depth": depth, "reasoning_effort": effort}
        named = [field for field, value in given.items() if value is not None]
        if len(named) > 1:
            raise ApiError(
                400,
                f"The fields {named[0]} and {named[1]} both say which layers run: give one of them, with the model "
                f"{base!r} itself.",
                param=named[1],
                code="invalid",
            )
        text = self.default if not named else str(given[named[0]])
        if effort is not None:
            if effort not in self.efforts:
                known = ", ".join(self.efforts) or "none"
                raise ApiError(
                    400,
                    f"There is no depth for the reasoning_effort {effort[:40]!r}: this server has {known}.",
                    param="reasoning_effort",
                    code="invalid",
                )
            text = self.efforts[effort]
        try:
            return self.read(text if not isinstance(depth, float) or effort is not None else _share_text(depth))
        except InputError as error:
            is_model = named == ["model"]
            raise ApiError(
                404 if is_model else 400,
                str(error),
                param=named[0] if named else None,
                code="model_not_found" if is_model else "invalid",
            ) from error

    def read(self, text: str) -> Chosen:
        """The depth that a text stands for; no text stands for a file.

        Raises:
            InputError: for what is no depth of this model.
        """
        text = text.strip()
        if len(text) > _MOST_TEXT:
            raise InputError(f"The depth is {len(text)} characters long: write one of at most {_MOST_TEXT}.")
        if text not in self._read:
            if len(self._read) >= _KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[text] = self._parse(text)
        return self._read[text]

    def listed(self) -> list[Chosen]:
        """The depths that are worth a model id of their own, the default one left out."""
        texts = [f"{name}-{len(route)}" for name, routes in self._families.items() for route in routes if not route.is_full]
        texts += [text for text in self.efforts.values() if text != self.default]
        texts += [LOSSLESS] if self._has_lossless else []
        texts += [] if self.controller is None else [CONTROLLER]
        texts += [] if self.default == FULL else [FULL]
        return [self.read(text) for text in dict.fromkeys(texts)]

    def model_id(self, chosen: Chosen) -> str:
        return f"{self.name}:{chosen.label}"

    @property
    def _has_lossless(self) -> bool:
        try:
            self.read(LOSSLESS)
        except InputError:
            return False
        return True

    def _split(self, model_id: str | None) -> tuple[str, str]:
        """(the model's name, the text behind its colon) of an id."""
        if model_id is None or model_id == self.name:
            return self.name, ""
        if not model_id.startswith(f"{self.name}:") or not model_id.removeprefix(f"{self.name}:").strip():
            raise ApiError(
                404,
                f"There is no model {model_id[:80]!r}: this server has {self.name!r}, and {self.name}:DEPTH.",
                param="model",
                code="model_not_found",
            )
        return self.name, model_id.removeprefix(f"{self.name}:")

    def _parse(self, text: str) -> Chosen:
        if text.partition(":")[0] == LOSSLESS:
            return Chosen(text, LosslessDepth.of(self._lossless(text), self.model, self.n_layers))
        if text.partition(":")[0] == CONTROLLER:
            return self._controller(text)
        family, number = self._of_family(text)
        route = self._within(family, number) if number is not None else Route.parse(text, self.n_layers)
        if route.is_full and self._is_adapted:
            return Chosen(text, UntouchedDepth(self.n_layers))
        return Chosen(text, RouteDepth(route))

    def _of_family(self, text: str) -> tuple[Sequence[Route], int | float | None]:
        """What a number chooses from, and the number; None for a text without one."""
        number = number_in(text)
        if number is not None:
            return self._known, number
        named = re.fullmatch(r"(.+)[-:]([0-9.]+%?)", text)
        if named is None or named[1] not in self._families:
            return (), None
        return (*self._families[named[1]],), number_in(named[2])

    def _within(self, family: Sequence[Route], number: int | float) -> Route:
        if isinstance(number, int) and number > self.n_layers:
            raise InputError(
                f"The depth {number} asks for {number} of {self.n_layers} layers: give at most {self.n_layers}."
            )
        return route_within(tuple(family), number / self.n_layers if isinstance(number, int) else number)

    def _lossless(self, text: str) -> Lossless:
        draft = text.partition(":")[2].strip()
        if ":" not in text:
            return Lossless()
        if draft == LOOKUP:
            return Lossless(LOOKUP)
        chosen = self._parse(draft)
        if chosen.route is None or not isinstance(chosen.depth, RouteDepth):
            raise InputError(f"The draft {draft[:60]!r} is no one route: give one, such as lossless:uls:50%.")
        return Lossless(chosen.route)

    def _controller(self, text: str) -> Chosen:
        if self.controller is None:
            raise InputError("This server has no controller: start it with --controller DIR, or name another depth.")
        budget = text.partition(":")[2]
        depth: ChoosingDepth = self.controller
        if ":" in text:
            number = number_in(budget)
            if number is None:
                raise InputError(f"{text[:60]!r} has no budget: give a share or a count, such as controller:80%.")
            depth = self.controller.at(number)
        return Chosen(text, depth, self.controller.card.template, self.controller.card.prompt_depth)


def _id_of(name: str) -> str:
    """A family's name as part of a model id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "family"


def _fitting(family: RouteFamily, n_layers: int) -> tuple[Route, ...]:
    if family.n_layers != n_layers:
        raise InputError(
            f"The route family {family.name!r} is for {family.n_layers} layers but this model has {n_layers}: search again."
        )
    return family.cheapest_first()


def _share_text(share: float) -> str:
    """A share as text that is read as one: 1e-07 and 1.0 have their point."""
    return repr(float(share))
