"""Replies to a request, whole or as a stream of server-sent events."""

from __future__ import annotations

import functools
import importlib.metadata
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from depthdial.engine.generation import Generation
from depthdial.engine.logprobs import TokenLogprob
from depthdial.serve.errors import ApiError, encode
from depthdial.serve.running import Watch
from depthdial.serve.shapes import End, Shape
from depthdial.serve.stops import StopCutter

KEEP_ALIVE, DONE = b": keep-alive\n\n", b"data: [DONE]\n\n"
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        model: the id that the client gave.
        n_answers: to each prompt.
        stops, keeps_stop: see `StopCutter`.
        ends: tokens that end an answer and are no part of it.
        usage: makes `usage` of all answers.
    """

    shape: Shape
    model: str
    n_answers: int
    stops: Sequence[str]
    keeps_stop: bool
    ends: frozenset[int]
    usage: Any
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.shape.prefix}-{uuid.uuid4().hex}")
        object.__setattr__(self, "created", int(time.time()))

    def whole(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = []
        for index, answer in enumerate(answers):
            cutter = self._cutter()
            text = cutter.add(answer.text)
            text += cutter.end()
            choices.append(self.shape.whole(index, text, self._own(answer.logprobs), self._end(answer, cutter)))
        return self._envelope(self.shape.whole_object, choices) | {"usage": self.usage(answers)}

    def empty(self, n_prompts: int) -> dict[str, Any]:
        """The response of a request for no tokens: prompts alone."""
        choices = [self.shape.whole(i, "", None, End("length")) for i in range(n_prompts * self.n_answers)]
        return self._envelope(self.shape.whole_object, choices) | {"usage": self.usage([])}

    async def stream(self, watch: Watch, n_prompts: int, includes_usage: bool) -> AsyncIterator[bytes]:
        """The events of a request that streams; one for no tokens has no requests to watch.

        Raises:
            ApiError: as `Watch.events`.
        """
        more: dict[str, Any] = {"usage": None} if includes_usage else {}
        n_choices = n_prompts * self.n_answers
        cutters = [self._cutter() for _ in range(n_choices)]
        found: list[Generation | None] = [None] * n_choices
        for index in range(n_choices):
            if (opening := self.shape.opening(index)) is not None:
                yield self._event([opening], more)
            if not watch.requests:
                yield self._event([self.shape.closing(index, End("length"))], more)
        async for news in watch.events():
            if news is None:
                yield KEEP_ALIVE
                continue
            number, event = news
            index = number * self.n_answers + event.place
            cutter = cutters[index]
            text = cutter.add(event.text)
            text += cutter.end() if event.answer is not None else ""
            logprobs = self._own(event.logprobs or None)
            if text or logprobs:
                yield self._event([self.shape.piece(index, text, logprobs)], more)
            if event.answer is not None:
                found[index] = event.answer
                yield self._event([self.shape.closing(index, self._end(event.answer, cutter))], more)
        if includes_usage:
            yield self._event([], {"usage": self.usage([answer for answer in found if answer is not None])})
        yield DONE

    def _cutter(self) -> StopCutter:
        return StopCutter(self.stops, keeps_stop=self.keeps_stop)

    def _own(self, found: Sequence[TokenLogprob] | None) -> list[TokenLogprob] | None:
        """Log-probabilities of an answer's own tokens: the one that ends it is no part of its text."""
        return None if found is None else [one for one in found if one.token not in self.ends]

    def _end(self, answer: Generation, cutter: StopCutter) -> End:
        if cutter.found is not None:
            return End("stop", cutter.found)
        return End(_REASONS[answer.finish_reason])

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        return event(self._envelope(self.shape.chunk_object, choices) | more)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "system_fingerprint": f"depthdial-{version()}", "choices": choices}


def event(content: Any) -> bytes:
    return b"data: " + encode(content) + b"\n\n"


def error_events(error: ApiError) -> bytes:
    """An error that comes up inside a stream, whose status was 200 already."""
    return event(error.body) + DONE


@functools.cache
def version() -> str:
    """Of this package."""
    return importlib.metadata.version("depthdial")
