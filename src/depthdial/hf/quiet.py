"""transformers' progress bars and log, kept quiet while Depthdial uses it."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_QUIET = threading.RLock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and warnings quiet for a while, then leave its settings as they were.

    They are global, so one thread loads at a time. A user who has asked for transformers' INFO or DEBUG keeps them.
    """
    import transformers.utils.logging as hf_logging
    from transformers import modeling_gguf_pytorch_utils

    gguf_module: Any = modeling_gguf_pytorch_utils  # it takes its bar from tqdm directly, past the hook

    def no_bar(_factory: object, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return hf_logging.EmptyTqdm(*args, **keywords)

    logger = logging.getLogger("transformers")
    with _QUIET:
        level, bar = logger.level, gguf_module.tqdm
        previous = hf_logging.set_tqdm_hook(no_bar)
        if level >= logging.WARNING:
            logger.setLevel(max(level, logging.ERROR))
        gguf_module.tqdm = functools.partial(bar, disable=True)
        try:
            yield
        finally:
            hf_logging.set_tqdm_hook(previous)
            logger.setLevel(level)
            gguf_module.tqdm = bar
