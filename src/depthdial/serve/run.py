"""`depthdial serve`: the application on uvicorn, from the socket to the last request."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from depthdial.errors import InputError
from depthdial.serve.app import create_app
from depthdial.serve.guard import KEYS_VARIABLE, read_keys
from depthdial.serve.service import Source
from depthdial.serve.settings import ServeSettings

_BACKLOG = 2048
_LAST_SEC = 30  # for requests that run when the server is stopped


def run_server(source: Source, settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that run then may finish.

    Args:
        say: told where the server listens.

    Raises:
        InputError: for an address that cannot be listened on, keys that cannot be read, and whatever the loading of the
            model raises.
    """
    keys = read_keys(settings.api_keys)
    listening = _listen(settings.host, settings.port)
    app = create_app(source, settings, keys=keys, on_failure=lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        app,
        log_config=None,  # its own would close the streams of other handlers of this process, such as those of absl
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_LAST_SEC,
    )
    server = uvicorn.Server(config)
    _tell(listening, keys, say)
    with listening, contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean end
        server.run(sockets=[listening])
    failure = app.state.service.failure
    if failure is not None:
        raise failure


def tell_address(settings: ServeSettings, keys: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Host and port for a server that another one than uvicorn listens with, once it is sure that they are free.

    Raises:
        InputError: for an address that cannot be listened on.
    """
    with _listen(settings.host, settings.port) as listening:
        host, port = _tell(listening, keys, say)
    return {"host": host, "port": port}


def _tell(listening: socket.socket, keys: Sequence[str], say: Callable[[str], None]) -> tuple[str, int]:
    host, port = listening.getsockname()[:2]
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1, ready when /health says so")
    if not keys and not _is_loopback(host):
        say(f"Everybody who reaches this address may ask: give --api-keys FILE or {KEYS_VARIABLE} for keys.")
    return host, port


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot listen on {host} port {port} ({reason}): give another --host or --port.") from error


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
