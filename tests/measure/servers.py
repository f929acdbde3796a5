"""A small OpenAI-style server around a real model, for tests of the client: no framework, real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Answer = Callable[[Any, int], tuple[str, str]]  # of a prompt and a limit: text, finish_reason


@dataclass
class Served:
    """A running server.

    Attributes:
        models: that it lists.
        asked: bodies of all completions, in order of arrival.
        failures: (status, headers, body) to give instead of the next answers.
        key: that requests must carry; None for none.
    """

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["tiny"])
    asked: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    key: str | None = None


@contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    """Serve `answer` under /v1 on a free port of this machine."""
    served, lock = Served(), Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def refused(self) -> bool:
            if served.key is not None and self.headers.get("Authorization") != f"Bearer {served.key}":
                self.say(401, b'{"error": {"message": "No key."}}')
                return True
            return False

        def do_GET(self) -> None:
            if not self.refused():
                found = {"data": [{"id": name} for name in served.models]} if self.path == "/v1/models" else {}
                self.say(200 if found else 404, json.dumps(found).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.refused():
                return
            with lock:
                served.asked.append(body)
                failure = served.failures.pop(0) if served.failures else None
                if failure is None:
                    text, reason = answer(body["prompt"], body["max_tokens"])
            if failure is not None:
                self.say(failure[0], failure[2], failure[1])
            else:
                self.say(200, json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
