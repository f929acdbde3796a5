"""What stands before the application: API keys, and bodies of bounded size that come in bounded time."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from depthdial.errors import InputError
from depthdial.serve.errors import ApiError

HEALTH = "/health"
KEYS_VARIABLE = "DEPTHDIAL_API_KEYS"
_BODY_SEC = 30.0  # for a whole body to come


def read_keys(file: str | None) -> tuple[str, ...]:
    """The API keys of a file, one a line, or else of the environment, divided by commas; empty for none.

    Raises:
        InputError: for a file that cannot be read, that holds no key, or one that no header can carry.
    """
    if file is None:
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    else:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read the API keys in {file}: give a text file with one key a line.") from error
        keys = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(keys):
            raise InputError(f"There is no API key in {file}: write one a line.")
    found = tuple(key for key in keys if key)
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise InputError("An API key holds a character that no header carries: use letters, digits and -._~+/=.")
    return found


class Guard:
    """ASGI middleware. With keys, nothing but /health answers without one of them.

    A key comes as `Authorization: Bearer KEY`, or as the password of Basic authentication, which a browser asks for when
    it opens a page.

    Args:
        keys: accepted ones; without any, everybody may ask.
        max_body_bytes: largest body.
        on_response: told the path and status of every response.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[str] = (),
        max_body_bytes: int = 8_000_000,
        on_response: Callable[[str, int], None] = lambda path, status: None,
    ) -> None:
        self._app, self._max_body_bytes, self._on_response = app, max_body_bytes, on_response
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_response(scope["path"], message["status"])
            await send(message)

        try:
            if scope["path"] != HEALTH:
                self._check_key(scope)
            received = await self._whole_body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        if received is not None:
            await self._app(scope, received, counted)

    def _check_key(self, scope: Scope) -> None:
        if not self._digests:
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = _digest(_key_in(headers.get(b"authorization", "")))
        # All are compared, each in constant time, so that the time tells nothing about which key came near.
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            is_page = scope["method"] == "GET" and "text/html" in headers.get(b"accept", "")
            raise ApiError(
                401,
                "The API key is missing or wrong: send the header Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="depthdial"' if is_page else "Bearer"},
            )

    async def _whole_body(self, scope: Scope, receive: Receive) -> Receive | None:
        """Receives the body at once, and later what `receive` does; None where the client has gone."""
        parts, n_bytes, is_whole = [], 0, False
        while not is_whole:
            try:
                message = await asyncio.wait_for(receive(), _BODY_SEC)
            except TimeoutError:
                raise ApiError(408, f"The body did not come within {_BODY_SEC:g} s: send it faster.") from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self._max_body_bytes:
                raise ApiError(413, f"The body exceeds {self._max_body_bytes} bytes: send less.", code="request_too_large")
            is_whole = not message.get("more_body", False)
        if n_bytes and scope["method"] == "POST":
            _check_is_json(scope)
        body: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def received() -> Message:
            return body.pop() if body else await receive()

        return received


def _check_is_json(scope: Scope) -> None:
    """A page of another site can send a form or plain text unasked, but no JSON."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(
            415,
            f"The body is {kind.decode('latin-1')[:60] or 'of no type'!r}: send JSON with Content-Type: application/json.",
            code="unsupported_media_type",
        )


def _key_in(header: str) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
