"""OpenMP threads that a caller's thread keeps, given back before another thread runs the model.

Every thread that runs a parallel loop of PyTorch keeps helpers of its own. Once there are more of them than cores, GNU's
OpenMP lets none wait actively any more, and each of the hundreds of loops of a small step begins by waking threads: a step
of SmolLM2 on two cores takes 30 ms in place of 14, in whichever thread.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

_SOFT = 1  # omp_pause_soft: threads end, settings stay


def give_back_threads() -> None:
    """End the OpenMP threads that wait for the calling thread; its next parallel loop starts new ones in a moment.

    Does nothing where PyTorch runs on another runtime than GNU's, where it is about the calling thread.

    Example:
        >>> from depthdial.engine.threads import give_back_threads
        >>> give_back_threads()
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return None
    found = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "/libgomp" in line}
    if len(found) != 1:  # none, or several that each know their own threads
        return None
    try:
        return ctypes.CDLL(found.pop()).omp_pause_resource_all
    except (OSError, AttributeError):  # older than OpenMP 5.0
        return None
