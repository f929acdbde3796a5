"""The harness itself: whether it is installed, and what it leaves behind where it ran: nothing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

from depthdial.errors import InputError


def require_harness() -> None:
    """InputError unless lm-evaluation-harness is installed; imports nothing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("Evaluation needs lm-evaluation-harness, which is not installed: pip install 'depthdial[eval]'.")


def harness_version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("lm_eval")


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Inside, the harness tells errors alone and draws no bars while it builds contexts.

    Python's own chance, which it draws from, is put back afterwards.
    """
    from lm_eval.api import task

    logger, bar, chance = logging.getLogger("lm_eval"), task.tqdm, random.getstate()
    level = logger.level
    logger.setLevel(logging.ERROR)
    task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        task.tqdm = bar
        logger.setLevel(level)
        random.setstate(chance)
