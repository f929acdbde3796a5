"""Route families as files: what a search writes and every verb takes with `--routes FILE`. Standard library only."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from depthdial.checks import choice
from depthdial.errors import InputError
from depthdial.files import Document
from depthdial.routes import FAMILIES, AnyRoute, Route, family_routes, require_depth, split_routes, stored_route

# How prompts run: through every layer, or through the route as the response does (as a saved folder runs them).
PROMPT_DEPTHS = ("full", "route")
_FILE = Document("depthdial-routes", 1, "route family", "make one with `depthdial search`")


@dataclass(frozen=True)
class RouteFamily:
    """Named routes of one model depth, cheapest first, with the record of how they were found.

    Attributes:
        name: of the family, such as `greedy-kl`.
        routes: each has its own name, such as `greedy-kl:24`.
        made_by: JSON-ready record of the search (method, calibration data, model, seed, scores); may be empty.
        prompt_depth: `full` or `route`, how prompts ran in the search: how they should run when a route is used. None where
            that is not known, or makes no difference to the method; read from `made_by` where not given.

    Raises:
        InputError: if there is no route, a route is for another depth, or two share a name.

    Example:
        >>> family = dd.RouteFamily("mine", 6, (dd.Route((0, 1, 5), 6), dd.Route.parse("full", 6)))
        >>> dd.RouteFamily.load(family.save(folder / "mine.json")) == family
        True
    """

    name: str
    n_layers: int
    routes: tuple[Route, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False)
    prompt_depth: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.routes:
            raise InputError(f"Route family {self.name!r} is empty: give it at least one route.")
        names = [route.name for route in self.routes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"Route family {self.name!r} has two routes called {twice!r}: give each its own name.")
        deep = next((route for route in self.routes if route.n_layers != self.n_layers), None)
        if deep is not None:
            raise InputError(
                f"Route {deep.name!r} of family {self.name!r} is for {deep.n_layers} layers, not {self.n_layers}: "
                "put routes of one model depth in a family."
            )
        if self.prompt_depth is not None:
            choice("prompt depth", self.prompt_depth, PROMPT_DEPTHS)
        object.__setattr__(self, "prompt_depth", self.prompt_depth or _told_prompt_depth(self.made_by))
        # What is known of the search stays with each route, wherever that is taken: the full one is no finding of a search.
        object.__setattr__(self, "routes", tuple(map(self._tagged, self.routes)))

    def _tagged(self, route: Route) -> Route:
        if route.is_full:
            return route
        found = {
            "searched_on": route.searched_on | self.searched_on,
            "searched_for": route.searched_for or self.prompt_depth,
        }
        return route if all(getattr(route, name) == value for name, value in found.items()) else replace(route, **found)

    @property
    def searched_on(self) -> frozenset[str]:
        """Hashes of the prompts of the search that `made_by` tells of; none where it does not say."""
        prompts = self.made_by.get("prompts")
        is_told = isinstance(prompts, list | tuple) and all(isinstance(one, str) for one in prompts)
        return frozenset(prompts) if is_told else frozenset()  # type: ignore[arg-type]

    def cheapest_first(self) -> tuple[Route, ...]:
        return tuple(sorted(self.routes, key=lambda route: route.cost_layers))

    def save(self, path: Path | str) -> Path:
        """Write the family as JSON, by atomic rename."""
        fields = {
            "name": self.name,
            "n_layers": self.n_layers,
            "prompt_depth": self.prompt_depth,
            "routes": stored_routes(self.routes, known=self.searched_on, known_for=self.prompt_depth),
            "made_by": dict(self.made_by),
        }
        return _FILE.write(Path(path), fields)

    @classmethod
    def load(cls, path: Path | str) -> RouteFamily:
        """Read a family that `save` wrote.

        Raises:
            InputError: if the file is missing, not such a file, or holds a route that does not fit its depth.
        """
        return _FILE.read(Path(path), cls._of)

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> RouteFamily:
        routes = restored_routes(document["routes"], document["n_layers"])
        made_by, prompt_depth = (
            dict(document.get("made_by", {})),
            document.get("prompt_depth"),
        )  # before it was written: None
        return cls(_text(document["name"]), document["n_layers"], routes, made_by, prompt_depth)


Named = Callable[[Any], "Route | None"]


def read_routes(text: str, n_layers: int, named: Named = lambda _: None) -> tuple[AnyRoute, ...]:
    """The routes that `--routes` names: a family file, or a list of routes and family names (`full,uls:50%,ee`).

    Args:
        named: finds the route of a text that only a model gives a meaning, such as `80%`; None for other texts, and for all
            of them where there is no model.

    Raises:
        InputError: if one of them cannot be used for a model of `n_layers` layers.
    """
    if is_file(text):  # as a whole, for the name of a file may hold commas and spaces
        return _file_routes(text, n_layers)
    routes: list[AnyRoute] = []
    for part in [text] if is_file(text.rpartition(":")[0]) else split_routes(text):
        found = named(part)
        if found is not None:
            routes.append(found)
        elif part.lower().endswith(".json") or is_file(part):
            routes.extend(_file_routes(part, n_layers))
        elif part.lower() in FAMILIES:
            routes.extend(family_routes(part.lower(), n_layers))
        else:
            routes.append(Route.parse(part, n_layers))
    if not routes:
        raise InputError("No route was given: name at least one, such as full or uls:50%.")
    return tuple(routes)


def listed_routes(given: Any, n_layers: int, named: Named = lambda _: None) -> tuple[Any, ...]:
    """What an argument `routes` names: one route or several, each a Route, its text, its layers (0, 1, 5), or a family.

    Anything else, such as a token-wise depth, is returned as it is.

    Raises:
        InputError: if one of them cannot be used for a model of `n_layers` layers, or nothing is given.
    """
    if isinstance(given, Iterable) and not isinstance(given, (str, os.PathLike, range)) and not _is_layers(given):
        return tuple(route for one in given for route in _listed(one, n_layers, named))
    return _listed(given, n_layers, named)


def fixed_routes(routes: Any, n_layers: int) -> tuple[Route, ...]:
    """Routes, cheapest first, from a RouteFamily, the text of `--routes`, or a list of routes and texts.

    Raises:
        InputError: for any other type, a random rule, or a route for another depth.
    """
    found = listed_routes(routes, n_layers)
    if not found:
        raise InputError("There are no routes to choose from: give two or more, the full one among them.")
    kept = distinct_routes(require_fixed(require_depth(route, n_layers)) for route in found)
    return tuple(sorted(kept, key=lambda route: route.cost_layers))


def require_fixed(route: Any) -> Route:
    """A route as it is; InputError for a random rule, which is another route for every sequence."""
    if not isinstance(route, Route):
        raise InputError(f"Controllers choose among fixed routes, and {route.name!r} is random: remove it.")
    return route


def _listed(one: Any, n_layers: int, named: Named) -> tuple[Any, ...]:
    if isinstance(one, RouteFamily):
        return tuple(require_depth(route, n_layers) for route in one.routes)
    if isinstance(one, str | os.PathLike):
        return read_routes(os.fspath(one), n_layers, named)
    if isinstance(one, numbers.Real):
        return (named(one) or Route.parse(str(one), n_layers),)
    if isinstance(one, list | range) or _is_layers(one):
        return (Route(tuple(one), n_layers),)
    return (one,)


def _is_layers(given: Any) -> bool:
    return isinstance(given, tuple) and bool(given) and all(isinstance(layer, numbers.Integral) for layer in given)


def _file_routes(path: str, n_layers: int) -> tuple[Route, ...]:
    family = RouteFamily.load(path)
    if family.n_layers != n_layers:
        raise InputError(f"{path} is for {family.n_layers} layers but this model has {n_layers}: search again.")
    return family.routes


def is_file(text: str) -> bool:
    """Whether a text is a file's path; a long list of layers is not."""
    try:
        return Path(text).is_file()
    except OSError:  # a long list of routes is no file name
        return False


def distinct_routes(routes: Iterable[Any]) -> tuple[Any, ...]:
    """Of routes with the same layers the first, under its name; a search that found any of them is known of it."""
    kept: dict[Any, Any] = {}
    for route in routes:
        first = kept.setdefault(route, route)
        more = getattr(route, "searched_on", frozenset()) - getattr(first, "searched_on", frozenset())
        if more:
            first = kept[route] = replace(first, searched_on=first.searched_on | more)
        found_for = {getattr(one, "searched_for", None) for one in (first, route)} - {None}
        if len(found_for) > 1:  # searches of both kinds found it
            kept[route] = replace(first, searched_for=None)
    return tuple(kept.values())


def stored_routes(routes: Iterable[Route], known: Iterable[str] = (), known_for: str | None = None) -> list[dict[str, Any]]:
    """JSON-ready entries, of which `restored_routes` makes the routes again: names, layers, and how they were searched.

    Hashes of prompts that are `known`, and a prompt depth that is `known_for`, are left out: the document tells them of all
    the routes elsewhere.
    """
    entries: list[dict[str, Any]] = []
    for route in routes:
        entries.append({"name": route.name, "layers": str(route)})
        if seen := route.searched_on.difference(known):
            entries[-1]["searched_on"] = sorted(seen)
        if route.searched_for not in (None, known_for):
            entries[-1]["searched_for"] = route.searched_for
    return entries


def restored_routes(entries: Iterable[Mapping[str, Any]], n_layers: int) -> tuple[Route, ...]:
    """The routes of the entries in a file.

    Raises:
        InputError: (or KeyError, TypeError, for what is no such entry) if one is not a route of `n_layers` layers.
    """
    found = []
    for entry in entries:
        parsed = stored_route(entry["layers"], n_layers)
        if not isinstance(parsed, Route):
            raise InputError(f"{entry['layers']} is a random rule and no route")
        seen = entry.get("searched_on", [])
        if not isinstance(seen, list) or not all(isinstance(one, str) for one in seen):
            raise TypeError(f"searched_on is a list of hashes, not {seen!r}")
        found_for = entry.get("searched_for")
        if found_for is not None:
            choice("prompt depth", found_for, PROMPT_DEPTHS)
        found.append(replace(parsed, name=_text(entry["name"]), searched_on=frozenset(seen), searched_for=found_for))
    return tuple(found)


def _told_prompt_depth(made_by: Mapping[str, Any]) -> str | None:
    """What a record from before families said it themselves has; methods without a metric look at no prompt depth."""
    settings = made_by.get("settings")
    told = settings.get("prompt_depth") if isinstance(settings, Mapping) and "metric" in made_by else None
    return told if told in PROMPT_DEPTHS else None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"a name is text, not {value!r}")
    return value
