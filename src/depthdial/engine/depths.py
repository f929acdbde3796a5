"""A depth as people write it: a route, its text, a share or a count of layers, a controller, a token policy."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from depthdial.control.card import routes_of
from depthdial.control.controller import CONTROLLER_FILE, OnlineController, SequenceController
from depthdial.errors import InputError
from depthdial.hf.known_routes import best_known_routes, check_share, route_within
from depthdial.routes import AnyRoute, RandomRoute, Route, require_depth
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import as_policy
from depthdial.views.view import route_of

Controller = SequenceController | OnlineController

_COUNT = re.compile(r"[+-]?\d+")
_SHARE = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_PERCENT = re.compile(r"([+-]?\d+(?:\.\d*)?)\s*%")

_TAKEN = "depth is a route such as 'uls:50%', a Route, a share of the layers such as 0.5, or a controller, not "


def is_several(depth: Any) -> bool:
    """Whether a depth is a list of one for each prompt; a tuple of whole numbers is a route's layers."""
    if isinstance(depth, tuple):
        return not all(_is_whole(one) for one in depth)
    return isinstance(depth, list)


def number_in(depth: Any) -> int | float | None:
    """The number that a depth is, as a value or as text: a float is a share of the layers, an int a count of them.

    Raises:
        InputError: for a number that is neither a share nor a count.
    """
    if isinstance(depth, str):
        text = depth.strip()
        if _COUNT.fullmatch(text):
            return _count(int(text) if len(text) < 10 else 10**9, text)
        if _SHARE.fullmatch(text):
            return check_share(float(text))
        percent = _PERCENT.fullmatch(text)
        return None if percent is None else check_share(float(percent[1]) / 100)
    if isinstance(depth, bool) or not isinstance(depth, numbers.Real):
        return None
    return _count(int(depth), repr(depth)) if isinstance(depth, numbers.Integral) else check_share(float(depth))


def read_depth(depth: Any, model: Any, n_layers: int, routes: Any) -> AnyRoute | TokenDepth | Controller:
    """What a depth stands for on a model of `n_layers` layers.

    Args:
        routes: what a number chooses from; None: the best known routes.

    Raises:
        InputError: for a depth that is none, or does not fit the model.
    """
    number = number_in(depth)
    if number is not None:
        return _within(number, model, n_layers, routes)
    found = _without_number(depth, n_layers)
    if routes is not None and not isinstance(found, Controller):
        raise InputError(
            "routes= says what a depth in numbers, such as 0.5, is chosen from: leave it out, or give a number."
        )
    return found


def _without_number(depth: Any, n_layers: int) -> AnyRoute | TokenDepth | Controller:
    if isinstance(depth, Controller):
        return depth
    if isinstance(depth, Route | RandomRoute):
        return require_depth(depth, n_layers)
    if isinstance(depth, str) and not (Path(depth) / CONTROLLER_FILE).is_file():
        return Route.parse(depth, n_layers)
    if isinstance(depth, str | os.PathLike):
        return SequenceController.from_pretrained(Path(depth))
    if isinstance(depth, tuple | range):
        return Route(tuple(depth), n_layers)
    if isinstance(depth, nn.Module) and not callable(getattr(depth, "policy", None)):
        raise _no_model(depth)
    if isinstance(depth, TokenDepth):
        return require_depth(depth, n_layers)
    if callable(depth) or hasattr(depth, "fingerprint") or callable(getattr(depth, "policy", None)):
        return TokenDepth(as_policy(depth), n_layers)
    raise InputError(f"{_TAKEN}{_short(depth)}.")


def _within(number: int | float, model: Any, n_layers: int, routes: Any) -> Route:
    if isinstance(number, int) and number > n_layers:
        raise InputError(f"depth={number} asks for {number} of {n_layers} layers: give at most {n_layers}.")
    known = best_known_routes(model) if routes is None else routes_of(routes, n_layers)
    return route_within(known, number / n_layers if isinstance(number, int) else number)


def _count(value: int, told: str) -> int:
    if value == 1:
        raise InputError(
            f"depth={told} may mean one layer or the whole model: write 1.0 or 'full' for every layer, and a route such as "
            "'ee:1' for one."
        )
    if value < 1:
        raise InputError(f"A depth is a route, or a share of the layers above 0 and at most 1 such as 0.5, not {told}.")
    return value


def _no_model(model: nn.Module) -> InputError:
    kind, route = type(model).__name__, route_of(model)
    if route is None:
        return InputError(f"{_TAKEN}a model ({kind}).")
    return InputError(f"{_TAKEN}a view ({kind}): give the view's own route, depth={str(route)!r}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def one_each(depth: Sequence[Any], n_prompts: int) -> list[Any]:
    """A list of depths, once it is sure to have one for each prompt."""
    if len(depth) != n_prompts:
        raise InputError(
            f"depth is a list of {len(depth)} for {n_prompts} prompts: give one for each prompt, or a route's layers as "
            "a tuple such as (0, 1, 5)."
        )
    return list(depth)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
