"""The depths that the playground offers, and what else its page has to know of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.architectures import count_layers
from depthdial.hf.known_routes import route_within, searched_routes
from depthdial.routes import Route, family_routes


@dataclass(frozen=True)
class OfferedDepth:
    """A depth of the page.

    Attributes:
        depth: what the page sends as the field `depth`.
        title: what the reader sees.
        layers: the layers that run, from 0; None where only the answer tells.
        about: a few words on it.
    """

    depth: str
    title: str
    layers: tuple[int, ...] | None = None
    about: str = ""


@dataclass(frozen=True)
class PageFacts:
    """What the page has to know.

    Attributes:
        model: the model id that the page sends.
        n_layers: of the whole model.
        has_chat: whether prompts go as chat messages; else as plain text.
        prompt_depth: the layers that prompts run: `full` or `route`.
        dial: the stops of the dial, from few layers to all.
        named: depths to choose by name, the full model first.
    """

    model: str
    n_layers: int
    has_chat: bool
    prompt_depth: str
    dial: tuple[OfferedDepth, ...]
    named: tuple[OfferedDepth, ...]


def dial_stops(model: Any, routes: Sequence[Route] | None = None) -> tuple[OfferedDepth, ...]:
    """The stops of a model's dial: the routes that a count of layers chooses from, from few layers to all.

    Args:
        routes: to choose from; None: the best known ones of the model, or uniformly skipped layers.

    Example:
        >>> [stop.depth for stop in dial_stops(model)]
        ['2', '3', '4', '5', 'full']
    """
    n_layers = count_layers(model)
    known = tuple(routes or searched_routes(model) or family_routes("unified", n_layers))
    found: dict[tuple[int, ...], OfferedDepth] = {}
    for count in range(2, n_layers):
        try:
            layers = route_within(known, count / n_layers).layers
        except InputError:  # no route is so short
            continue
        found.setdefault(layers, OfferedDepth(str(count), f"{len(layers)} of {n_layers} layers", layers))
    return (*found.values(), full_depth(n_layers))


def full_depth(n_layers: int) -> OfferedDepth:
    return OfferedDepth("full", "Full model", tuple(range(n_layers)), "what the others are compared with")
