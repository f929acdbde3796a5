"""A real server on a tiny random model, in a thread, for the real client."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.serve.app import create_app
from depthdial.serve.service import Served
from depthdial.serve.settings import ServeSettings
from tests.conftest import make_llama, make_tokenizer

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}to{% endif %}"
FAMILY = RouteFamily("mine", 6, (Route((0, 1, 5), 6, "mine:3"), Route((0, 1, 2, 5), 6, "mine:4"), Route.parse("full", 6)))


def chat_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def served(settings: ServeSettings | None = None, **more: Any) -> Served:
    return Served.of(make_llama(), chat_tokenizer(), "tiny", settings, **{"families": [FAMILY], **more})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Running:
    """A server and how it is reached."""

    app: Any
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Any:
        return self.app.state.service.ready.engine

    def client(self, key: str = "none", **more: Any) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, **more)

    def ask(
        self, path: str, body: Any = None, *, raw: bytes | None = None, method: str | None = None, **headers: str
    ) -> Answer:
        """Without a client of anybody's: what curl would get."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            given = {"Content-Type": "application/json", **given}
        request = urllib.request.Request(self.url + path, data=data, headers=given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values with these labels."""
        lines = [
            line for line in self.ask("/metrics").text.splitlines() if line.startswith(name) and line[len(name)] in "{ "
        ]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


@contextlib.contextmanager
def running(source: Any = None, settings: ServeSettings | None = None, **more: Any) -> Iterator[Running]:
    """A server that is ready."""
    source = served(settings) if source is None else source
    app = create_app(source, settings, **more)
    config = uvicorn.Config(app, log_config=None, log_level="error", access_log=False, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield Running(app, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def until(condition: Any, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.002)
