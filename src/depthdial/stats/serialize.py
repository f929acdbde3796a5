"""Results as JSON holds them, by the type hints of their dataclasses: arrays as lists, NaN as None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from depthdial.errors import InputError

_Stored = TypeVar("_Stored")


def dump(given: Any) -> Any:
    """Dataclasses and mappings as dicts, arrays and tuples as lists, NaN as None, NumPy numbers as Python's.

    >>> dump((np.array([1.0, np.nan]), {"n": np.int64(2)}))
    [[1.0, None], {'n': 2}]
    """
    if is_dataclass(given):
        return {field.name: dump(getattr(given, field.name)) for field in fields(given)}
    if isinstance(given, Mapping):
        return {name: dump(part) for name, part in given.items()}
    if isinstance(given, np.ndarray | np.generic):
        given = given.tolist()
    if isinstance(given, list | tuple):
        return [dump(part) for part in given]
    return None if isinstance(given, float) and np.isnan(given) else given


def load(kind: type[_Stored], document: Mapping[str, Any], name: str) -> _Stored:
    """The dataclass that `dump` made a document of: arrays of floats (None is NaN in them), tuples, dataclasses within.

    Args:
        name: of the kind, for errors.

    Raises:
        InputError: if fields are missing, unknown or of another form.
    """
    try:
        return _restored(kind, document)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"This is not a stored {name} ({problem}); write one with to_dict.") from None


def _restored(hint: Any, given: Any) -> Any:
    inner = get_args(hint)
    if given is None:
        return None
    if hint is np.ndarray:
        return np.array(given, dtype=float)
    if get_origin(hint) is tuple:
        kinds = inner[:1] * len(given) if inner[-1] is Ellipsis else inner
        return tuple(_restored(kind, part) for kind, part in zip(kinds, given, strict=True))
    if NoneType in inner:
        return _restored(inner[0], given)
    if is_dataclass(hint) and not is_dataclass(given):
        hints = get_type_hints(hint)
        return hint(**{name: _restored(hints.get(name), part) for name, part in given.items()})  # type: ignore[operator]
    return given
