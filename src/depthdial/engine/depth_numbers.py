"""Depths that a model gives their meaning: a share or a count of the layers, or the name of a route that is known of it."""

from __future__ import annotations

import numbers
import re
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.known_routes import best_known_routes, check_share, route_within, searched_routes
from depthdial.routes import Route
from depthdial.routes.families import fixed_routes, is_file

# The name of the family that is known of a model: its adapter's, or the one that ships for it.
SEARCHED = "searched"
_COUNT = re.compile(r"[+-]?\d+")
_SHARE = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_PERCENT = re.compile(r"([+-]?\d+(?:\.\d*)?)\s*%")


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


def named_route(given: Any, model: Any, n_layers: int, routes: Any = None) -> Route | None:
    """The route that a share or a count of layers means on a model: 24, `80%`, `routes.json:24`, `searched:24`.

    Also a known route by the name that tables give it, such as `greedy-kl:24`.

    Args:
        routes: what a bare number chooses from; None: the best known routes.

    Returns:
        None for what is neither.

    Raises:
        InputError: for a number that is neither a share nor a count, or a family that is not there.
    """
    number = number_in(given)
    family, colon, tail = str(given).strip().rpartition(":") if isinstance(given, str) else ("", "", "")
    if number is None and colon and (family == SEARCHED or family.lower().endswith(".json") or is_file(family)):
        number = number_in(tail)
        if number is None:
            raise InputError(
                f"{given!r} names no depth of {family}: give a count or a share, such as {family}:24 or {family}:80%."
            )
        routes = family
        if family == SEARCHED:
            routes = searched_routes(model)
            if routes is None:
                raise InputError(
                    f"{given!r} asks for a search that nobody made of this model: run depthdial search MODEL --out FILE, "
                    f"and give FILE:{tail}."
                )
    if number is None and colon and routes is None:
        return next((route for route in searched_routes(model) or () if route.name == given.strip()), None)
    return None if number is None else _within(number, model, n_layers, routes)


def _within(number: int | float, model: Any, n_layers: int, routes: Any) -> Route:
    if isinstance(number, int) and number > n_layers:
        raise InputError(f"The depth {number} asks for {number} of {n_layers} layers: give at most {n_layers}.")
    known = best_known_routes(model) if routes is None else fixed_routes(routes, n_layers)
    return route_within(known, number / n_layers if isinstance(number, int) else number)


def _count(value: int, told: str) -> int:
    if value == 1:
        raise InputError(
            f"The depth {told} may mean one layer or the whole model: write 1.0 or 'full' for every layer, and a route "
            "such as 'ee:1' for one."
        )
    if value < 1:
        raise InputError(f"A depth is a route, or a share of the layers above 0 and at most 1 such as 0.5, not {told}.")
    return value
