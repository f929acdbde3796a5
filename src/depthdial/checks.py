"""Guards on what a caller gives: the value itself, or one sentence that says what to give instead."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from depthdial.errors import InputError

_LIMITS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def choice(name: str, value: Any, known: Sequence[str]) -> Any:
    """InputError unless `value` is one of two or more `known` ones."""
    if value not in known:
        raise InputError(f"Unknown {name} {value!r}: use {', '.join(known[:-1])} or {known[-1]}.")
    return value


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """InputError unless `value` is a whole number within its limits."""
    return _within(name, value, numbers.Integral, "a whole number", (least, None, most, None))


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """InputError unless `value` is a finite number within its limits; `above` and `below` are not within them."""
    return _within(name, value, numbers.Real, "a number", (low, above, high, below))


def switched_on(variable: str, *, on: str, off: str) -> bool:
    """Whether an environment variable is 1, which it is where nobody sets it; InputError for another value than 0 and 1.

    Args:
        on, off: what 1 and 0 are for, to end "set it to 1 .. or to 0 ..".
    """
    asked = os.environ.get(variable, "1")
    if asked not in ("0", "1"):
        raise InputError(f"The environment variable {variable} is {asked!r}: set it to 1 {on} or to 0 {off}.")
    return asked == "1"


def share(name: str, value: Any) -> float:
    """InputError unless `value` is above 0 and at most 1."""
    return number(name, value, above=0, high=1)


def _within(name: str, value: Any, kind: type, what: str, limits: tuple[float | None, ...]) -> Any:
    known = {word: limit for word, limit in zip(_LIMITS, limits, strict=True) if limit is not None}
    is_number = isinstance(value, kind) and not isinstance(value, bool) and value == value and abs(value) != math.inf  # type: ignore[operator]
    if not is_number or not all(_LIMITS[word](value, limit) for word, limit in known.items()):
        said = " and ".join(f"{word} {limit:g}" for word, limit in known.items())
        raise InputError(f"Invalid {name} {value!r}: use {what}{' of' * said.startswith('at')}{said and ' '}{said}.")
    return value


_Kind = TypeVar("_Kind", bound=type)


def also_named(**words: str) -> Callable[[_Kind], _Kind]:
    """Class decorator: a settings class that also takes fields by words of before, `also_named(rank="r")`.

    A word may stand for a field of settings inside: `also_named(rank="run.r")`.

    Raises:
        InputError: from the class, where both words are given and say different things.
    """

    def decorate(kind: _Kind) -> _Kind:
        build: Any = kind.__init__  # type: ignore[misc]

        @functools.wraps(build)
        def init(self: Any, *args: Any, **given: Any) -> None:
            flat = {word: given.pop(word) for word in words if word in given}
            inner: dict[str, dict[str, Any]] = {}
            for word, value in flat.items():
                inside, _, name = words[word].rpartition(".")
                fields = inner.setdefault(inside, {}) if inside else given
                neutral = () if inside else (getattr(kind, name),)  # a field's default stands in its class
                if fields.get(name, value) not in (value, *neutral):
                    raise InputError(f"{word}={value!r} and {name}={fields[name]!r} are the same setting: give {name}.")
                fields[name] = value
            for inside in {words[word].rpartition(".")[0] for word in words} - {""}:
                default: Any = kind.__dataclass_fields__[inside].default_factory
                given[inside] = replace(given.get(inside) or default(), **inner.get(inside, {}))
            build(self, *args, **given)

        kind.__init__ = init  # type: ignore[misc]
        for word, name in words.items():
            setattr(kind, word, property(operator.attrgetter(name)))
        return kind

    return decorate
