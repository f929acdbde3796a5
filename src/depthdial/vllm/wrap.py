"""Methods of vLLM's classes that are replaced by Depthdial's, once in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "__depthdial__"


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace the method `name` of `owner` by one that calls `around(original, self, ..)`; a second time changes nothing."""
    original = getattr(owner, name)
    if getattr(original, _MARK, None) is owner:
        return

    @functools.wraps(original)
    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(replaced, _MARK, owner)
    setattr(owner, name, replaced)
