"""Text as it comes: transformers' streamers, and a function that is called with whole characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from depthdial.engine.events import TextSoFar
from depthdial.errors import InputError


def check_streaming(streamer: Any, on_text: Any, n_prompts: int, n_answers: int) -> None:
    """InputError for what cannot be streamed to, more prompts than one, or more answers to it."""
    if on_text is not None and not callable(on_text):
        raise InputError(
            f"The argument on_text is a function that takes a text, not {type(on_text).__name__}: give such as print."
        )
    if on_text is not None and n_prompts > 1:
        raise InputError("Text can be streamed for one prompt at a time: leave on_text out, or give one prompt.")
    if n_answers > 1 and (on_text is not None or streamer is not None):
        name = "on_text" if streamer is None else "streamer"
        raise InputError(f"One answer can be streamed, not {n_answers}: leave {name} out, or num_return_sequences.")
    if streamer is None:
        return
    if n_prompts > 1:
        raise InputError("A streamer takes one prompt at a time: leave streamer out, or give one prompt.")
    if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InputError(
            f"The argument streamer is {type(streamer).__name__}, which has no put and end: give one of transformers', such "
            "as TextStreamer."
        )


def streaming(tokenizer: Any, streamer: Any, on_text: Callable[[str], None] | None) -> Any:
    """One streamer for transformers' generate; None for none."""
    own = [] if on_text is None else [Pieces(tokenizer, on_text)]
    both = [*([] if streamer is None else [streamer]), *own]
    return None if not both else both[0] if len(both) == 1 else _Several(both)


class _Several:
    def __init__(self, streamers: list[Any]) -> None:
        self._streamers = streamers

    def put(self, value: torch.Tensor) -> None:
        for one in self._streamers:
            one.put(value)

    def end(self) -> None:
        for one in self._streamers:
            one.end()


class Pieces:
    """A streamer for transformers' generate: decodes as tokens come and passes on whole characters."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._text, self._on_text = TextSoFar(tokenizer), on_text
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate() first hands over the prompt
            self._prompt_seen = True
            return
        self._send(self._text.add(value.flatten().tolist()))

    def end(self) -> None:
        self._send(self._text.end())

    def _send(self, text: str) -> None:
        if text:
            self._on_text(text)
