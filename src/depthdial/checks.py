"""Guards on what a caller gives: one sentence for a value that cannot be used."""

from __future__ import annotations

from depthdial.errors import InputError


def check_positive(value: int, name: str) -> int:
    """The value itself, once it is sure to be a whole number of at least 1.

    Raises:
        InputError: otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    return value
