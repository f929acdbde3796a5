"""Requests of the engine as the event loop sees them: admitted or turned away, awaited without a thread each, cancelled
when their client goes or their time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from depthdial.engine.events import AnswerEvent
from depthdial.engine.generation import Generation
from depthdial.engine.handles import EngineRequest
from depthdial.errors import InputError
from depthdial.serve.asked import refused
from depthdial.serve.errors import ApiError

_RECENT = 0.2  # weight of the latest answer in the mean time of one


class Gate:
    """Counts the answers that run or wait, and turns requests away where there are too many.

    Args:
        rows: answers that decode at once.
        waiting: answers that may wait beside them.
    """

    def __init__(self, rows: int, waiting: int) -> None:
        self._rows, self._most = rows, rows + waiting
        self.n_held = 0
        self._mean_sec = 1.0

    @contextlib.contextmanager
    def hold(self, n_answers: int) -> Iterator[None]:
        """Room for some answers.

        Raises:
            ApiError: 429 with Retry-After if there is no room now, 400 if there never is.
        """
        if n_answers > self._most:
            raise ApiError(
                400,
                f"The request asks for {n_answers} answers, and this server holds {self._most}: ask for fewer.",
                param="n",
            )
        if self.n_held + n_answers > self._most:
            wait_sec = math.ceil(self._mean_sec * max(self.n_held - self._rows, 1) / self._rows)
            raise ApiError(
                429,
                f"The server is busy with {self.n_held} answers: try again in {wait_sec} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_sec)},
            )
        self.n_held += n_answers
        started = time.monotonic()
        try:
            yield
        finally:
            self.n_held -= n_answers
            self._mean_sec += _RECENT * (time.monotonic() - started - self._mean_sec)


class Watch:
    """Some requests of one client, awaited together.

    Args:
        timeout_sec: after which they are cancelled.
        keep_alive_sec: of silence, after which a stream is told so.
        is_stream: whether `events` are read; else `finished` alone.

    Attributes:
        first_token_sec: from the start to the first token; None before.
    """

    def __init__(
        self, requests: Sequence[EngineRequest], timeout_sec: float, keep_alive_sec: float, is_stream: bool = True
    ) -> None:
        self.requests = tuple(requests)
        self.started = time.monotonic()
        self.first_token_sec: float | None = None
        self._timeout_sec, self._keep_alive_sec = timeout_sec, keep_alive_sec
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._is_due, self._is_stream = False, is_stream
        for request in self.requests:
            request.listen(self._on_news)

    async def events(self) -> AsyncIterator[tuple[int, AnswerEvent] | None]:
        """(which request, its event) as they come, and None after a time of silence.

        Raises:
            ApiError: if a request fails, is cancelled by others, or takes too long.
        """
        readers = [request.events() for request in self.requests]
        while not all(reader.is_over for reader in readers):
            if not await self._wait():
                yield None
                continue
            for number, reader in enumerate(readers):
                if not reader.is_over:
                    for event in reader.take():
                        yield number, event
                    self._check(self.requests[number])

    async def finished(self) -> list[Generation]:
        """All answers, those of one request after those of another.

        Raises:
            ApiError: as `events`.
        """
        while not all(request.done for request in self.requests):
            await self._wait()
        for request in self.requests:
            self._check(request)
        results = [request.result() for request in self.requests]
        return [one for result in results for one in (result if isinstance(result, list) else [result])]

    def cancel(self) -> bool:
        """Stop what still runs; whether anything did."""
        return sum(request.cancel() for request in self.requests) > 0

    async def _wait(self) -> bool:
        """Whether there is news; False after a time of silence."""
        left_sec = self.started + self._timeout_sec - time.monotonic()
        if left_sec <= 0:
            raise ApiError(
                504, f"The request took longer than {self._timeout_sec:g} s: ask for fewer tokens.", code="timeout"
            )
        timer = self._loop.call_later(min(left_sec, self._keep_alive_sec), self._news.set)
        try:
            await self._news.wait()
        finally:
            timer.cancel()
        self._news.clear()
        if not self._is_due:  # and it stays as it is: the engine's thread may be setting it
            return False
        self._is_due = False
        return True

    def _on_news(self) -> None:
        """In the engine's thread: wake the loop, once until it has looked, and for whole answers once they are there."""
        if self.first_token_sec is None:
            self.first_token_sec = time.monotonic() - self.started
        if not self._is_due and (self._is_stream or all(request.done for request in self.requests)):
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._news.set)

    @staticmethod
    def _check(request: EngineRequest) -> None:
        """ApiError where a request is over without an answer."""
        if not request.done:
            return
        if request.cancelled:
            raise ApiError(503, "The server is shutting down: send the request again later.", code="cancelled")
        try:
            request.result()
        except InputError as error:
            raise refused(error) from error
        except Exception as error:
            raise ApiError(500, str(error), code="internal_error") from error
