"""Curves as JSON holds them: arrays as lists, numbers as Python's, nothing that strict readers refuse."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(given: Any) -> Any:
    """Arrays and tuples as lists, NaN as None, NumPy numbers as Python's."""
    if isinstance(given, np.ndarray):
        return plain(given.tolist())
    if isinstance(given, list | tuple):
        return [plain(item) for item in given]
    if isinstance(given, np.generic):
        given = given.item()
    return None if isinstance(given, float) and np.isnan(given) else given


def array_or_none(given: Any) -> Any:
    """The array that `plain` made a list of; None stays None, and inside the list it is NaN again."""
    return None if given is None else np.array(given, dtype=float)
