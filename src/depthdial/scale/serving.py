"""An ASGI application on Ray Serve: replicas behind one address."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from depthdial.errors import InputError
from depthdial.scale.cluster import Share, cluster, share_of
from depthdial.scale.settings import RaySettings

_NAME = "depthdial"


def serve_on_ray(
    build: Callable[[], Any],
    settings: RaySettings,
    *,
    host: str,
    port: int,
    max_requests: int,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve replicas of an application until SIGINT or SIGTERM.

    Args:
        build: a plain function that makes the application, its model loaded; called once in each replica.
        settings: `ray_actors` is the number of replicas.
        max_requests: that a replica holds at a time. Beyond that Ray Serve lets them wait before the replicas.
        on_ready: called once the address answers.

    Raises:
        InputError: if Ray is not installed or cannot be reached, or a replica cannot be built.
    """
    with cluster(settings) as ray:
        from ray import serve

        share = share_of(ray, settings)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # which the import has set
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        try:
            with contextlib.suppress(KeyboardInterrupt):  # also of one that comes while replicas load
                _deploy(serve, build, share, max_requests)
                on_ready()
                _until_stopped()
        finally:
            serve.shutdown()


def _deploy(serve: Any, build: Callable[[], Any], share: Share, max_requests: int) -> None:
    class Replica:
        pass

    deployment = serve.deployment(
        name=_NAME,
        num_replicas=share.actors,
        max_ongoing_requests=max_requests,
        max_constructor_retry_count=1,
        ray_actor_options=share.of_each,
    )
    try:
        serve.run(deployment(serve.ingress(build)(Replica)).bind(), name=_NAME, route_prefix="/")
    except RuntimeError as error:
        text = _failure(serve.status())
        if text is None:
            raise
        raise InputError(text) from error


def _failure(status: Any) -> str | None:
    """The sentence of the InputError that a replica's application raised."""
    messages = [one.message for application in status.applications.values() for one in application.deployments.values()]
    lines = [line for message in messages for line in message.splitlines() if f"{InputError.__name__}: " in line]
    return lines[-1].partition(f"{InputError.__name__}: ")[2].strip() if lines else None


def _until_stopped() -> None:
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(0.2):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
