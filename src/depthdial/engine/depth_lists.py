"""A list of depths, one for each prompt of a call."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Sequence
from typing import Any

from depthdial.engine.depth import Depth, refuse_routes
from depthdial.engine.depth_numbers import number_in
from depthdial.errors import InputError
from depthdial.routes import Route


def is_several(depth: Any) -> bool:
    """Whether a depth is a list of one for each prompt; a tuple of whole numbers is a route's layers."""
    if isinstance(depth, tuple):
        return not all(_is_whole(one) for one in depth)
    return isinstance(depth, list)


def one_each(depth: Sequence[Any], n_prompts: int, routes: Any) -> list[Any]:
    """A list of depths, once it is sure to have one for each prompt, and one that `routes` says something about if given."""
    if len(depth) != n_prompts:
        raise InputError(
            f"The depth is a list of {len(depth)} for {n_prompts} prompts: give one for each prompt, or a route's layers "
            "as a tuple such as (0, 1, 5)."
        )
    if not any(map(takes_routes, depth)):
        refuse_routes(routes)
    return list(depth)


def takes_routes(given: Any) -> bool:
    """Whether `routes` says something about a depth: what a number chooses from, or what chooses by itself."""
    return number_in(given) is not None or isinstance(given, Depth)


def written_alike(depth: Any) -> Hashable:
    """Equal for depths that are written alike, and so are read once; anything but a plain value is like itself alone."""
    is_value = isinstance(depth, str | int | float | tuple | Route)
    return (type(depth), depth) if is_value else id(depth)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
