"""A client of OpenAI-style servers (ours, vLLM, llama.cpp's): greedy completions of prompts, by the standard library alone.

Prompts are sent as token ids, so that a server runs the very prompt that the full model ran, whatever its own tokenizer or
chat template would make of a text; `send="text"` is for servers that take texts alone.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from depthdial.checks import choice
from depthdial.errors import InputError

SEND = ("ids", "text")
_BUSY = (408, 429, 500, 502, 503, 504)  # worth another try
_TRIES = 6
_LONGEST_WAIT_SEC = 30.0
_MOST_BYTES = 64 * 2**20


def is_url(text: str) -> bool:
    """Whether a target is an endpoint and no file."""
    return text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Completion:
    """A server's answer to one prompt; `is_ended` where the model ended it and not the limit."""

    text: str
    is_ended: bool
    seconds: float


@dataclass(frozen=True)
class Endpoint:
    """One model of a server.

    Attributes:
        base: URL up to and with `/v1`.
        model: as the server calls it.
        api_key: sent as a bearer token; None for none.
        timeout_sec: of one request.
    """

    base: str
    model: str
    api_key: str | None = None
    timeout_sec: float = 300.0

    @classmethod
    def connect(cls, url: str, model: str | None = None, api_key: str | None = None, timeout_sec: float = 300.0) -> Endpoint:
        """The endpoint behind a URL (with or without `/v1`), which must serve `model`, or one model alone.

        Raises:
            InputError: if nothing answers there, the model is unknown, or there are several and none is named.
        """
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise InputError(f"The URL {url!r} is not one of a server: give such as http://127.0.0.1:8000/v1.")
        path = parts.path.rstrip("/")
        base = f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else f'{path}/v1'}"
        found = cls(base, model or "", api_key, timeout_sec)
        listed = found._get("/models")
        names = [str(entry.get("id")) for entry in _entries(listed, "data", found.base)]
        if model is None and len(names) != 1:
            raise InputError(
                f"The endpoint {base} serves {len(names)} models ({', '.join(names[:6]) or 'none'}): say which with "
                "served_model (--served-model)."
            )
        # A server may take more names than it lists (our own takes MODEL:DEPTH), so that a name is not refused here.
        return cls(base, model or names[0], api_key, timeout_sec)

    def complete(self, prompts: Sequence[Any], max_tokens: int) -> list[Completion]:
        """Greedy answers to prompts (token ids, or texts), all asked at once, in their order.

        Raises:
            InputError: if the server refuses a prompt, or keeps failing.
        """
        with ThreadPoolExecutor(max_workers=max(1, len(prompts))) as pool:
            return list(pool.map(lambda prompt: self._complete(prompt, max_tokens), prompts))

    def _complete(self, prompt: Any, max_tokens: int) -> Completion:
        started = time.perf_counter()
        asked = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        choices = _entries(self._post("/completions", asked), "choices", self.base)
        first = choices[0] if choices else {}
        if not isinstance(first.get("text"), str):
            raise InputError(
                f"The endpoint {self.base} answered a completion without a text: check that it is OpenAI-style."
            )
        return Completion(first["text"], first.get("finish_reason") == "stop", time.perf_counter() - started)

    def _get(self, path: str) -> Any:
        return self._request(urllib.request.Request(self.base + path, headers=self._headers()))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        data = json.dumps(body).encode()
        headers = {**self._headers(), "Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.base + path, data=data, headers=headers))

    def _headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def _request(self, request: urllib.request.Request) -> Any:
        for attempt in range(1, _TRIES + 1):
            try:
                with self._opener.open(request, timeout=self.timeout_sec) as response:
                    return json.loads(response.read(_MOST_BYTES))
            except urllib.error.HTTPError as error:
                told = _message(error)
                if error.code not in _BUSY or attempt == _TRIES:
                    raise InputError(
                        f"The endpoint {request.full_url} answered {error.code} ({told}): {_remedy(error.code)}."
                    ) from None
                time.sleep(_wait_sec(error.headers.get("Retry-After"), attempt))
            except (OSError, ValueError, HTTPException) as error:  # no connection, a time-out, or no JSON
                reason = " ".join(str(getattr(error, "reason", error)).split())[:200].rstrip(".") or type(error).__name__
                raise InputError(
                    f"The endpoint {request.full_url} gave no answer ({reason}): start the server, or check the URL."
                ) from None
        raise AssertionError("unreachable")

    @property
    def _opener(self) -> urllib.request.OpenerDirector:
        # A proxy of the environment cannot reach this machine's own servers.
        is_own = urlsplit(self.base).hostname in ("localhost", "127.0.0.1", "::1")
        return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_own else []))


def check_send(send: str) -> str:
    """InputError for an unknown form of prompts."""
    return choice("form of prompts", send, SEND)


def _entries(document: Any, name: str, where: str) -> list[Mapping[str, Any]]:
    found = document.get(name) if isinstance(document, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise InputError(f"The endpoint {where} answered without {name!r}: check that it is an OpenAI-style server.")
    return found


def _message(error: urllib.error.HTTPError) -> str:
    """The message of an OpenAI-shaped error, or else the body's beginning."""
    try:
        body = error.read(10_000).decode(errors="replace")
    except OSError:
        body = ""
    try:
        told = json.loads(body)
        inner = told.get("error", told)
        text = inner.get("message", body) if isinstance(inner, Mapping) else inner
    except (AttributeError, ValueError):
        text = body or error.reason
    return " ".join(str(text).split())[:200].rstrip(".") or "no reason given"


def _remedy(code: int) -> str:
    if code in (401, 403):
        return "name the environment variable of the key with api_key (--api-key-env)"
    if code == 404:
        return "check the URL and the model's name (--served-model)"
    return (
        "try later, finished rows are kept" if code in _BUSY else "check the server, or send prompts as text (--send text)"
    )


def _wait_sec(told: str | None, attempt: int) -> float:
    try:
        asked = float(told or "")
    except ValueError:
        asked = 0.5 * 2**attempt
    return min(max(asked, 0.1), _LONGEST_WAIT_SEC)
