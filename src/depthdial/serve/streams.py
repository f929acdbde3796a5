"""Responses that end with their client: work stops as soon as nobody listens, streaming or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from depthdial.serve.errors import ApiError
from depthdial.serve.replies import error_events

_log = logging.getLogger("depthdial.serve")
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection."""


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """The result of some work, which is cancelled if the client goes first.

    Raises:
        ClientGoneError: if it does.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events.

    Args:
        events: bytes to send; an ApiError that comes up becomes an event of its own.
        on_end: called once, with the error that ended the stream early, a ClientGoneError among them, or None.
        most_sec: longest time that it may take, a client that reads nothing included.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[Exception | None], None], most_sec: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._on_end, self._most_sec = events, on_end, most_sec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended: Exception | None = ClientGoneError()
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            ended = await unless_gone(asyncio.wait_for(self._send_all(send), self._most_sec), receive)
        except (ClientGoneError, TimeoutError, OSError):
            pass
        finally:
            self._on_end(ended)

    async def _send_all(self, send: Send) -> Exception | None:
        failed: Exception | None = None
        try:
            async for part in self._events:
                await send(_body(part))
        except ApiError as error:
            failed = error
            await send(_body(error_events(error)))
        except Exception as error:
            _log.exception("A stream failed.")
            failed = error
            await send(_body(error_events(ApiError(500, f"The stream failed ({type(error).__name__}): send it again."))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return failed


def _body(part: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part, "more_body": True}
