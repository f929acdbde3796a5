"""Routes of a search tried on Ray: one process holds a model and the calibration prompts for the whole search.

The search itself, its order and its file of what is finished stay in the process that asked. A round's routes are tried by
the processes, which call the same function on the same prompts, and give the same numbers. Ray Data would start its
processes, and load the model, anew in each round; these are Ray's actors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from depthdial.routes import Route
from depthdial.scale.cluster import cluster, own_errors, share_of
from depthdial.scale.settings import RaySettings

Harm = Callable[[Route], float]
_IN_FLIGHT = 2  # routes that a process has at hand


@contextlib.contextmanager
def harms_on_ray(make: Callable[[], Harm], settings: RaySettings) -> Iterator[Callable[[Sequence[Route]], Iterator[float]]]:
    """What `search_routes` takes as `harms`, for as long as the processes are there.

    Args:
        make: makes what measures a route's harm, with the model and the prompts; called once in each process.

    Raises:
        InputError: if Ray is not installed or cannot be reached, or a process raises one.
    """
    with cluster(settings) as ray:
        share = share_of(ray, settings)
        trying = ray.remote(_Trying).options(**share.with_restarts)
        actors = [trying.remote(make) for _ in range(share.actors)]

        def harms(routes: Sequence[Route]) -> Iterator[float]:
            left = iter(routes)
            asked = []  # in order; an actor has two routes at a time, so that a slow one holds up few
            waiting: dict[Any, Any] = {}  # the actor of each route that is being tried

            def ask(actor: Any) -> None:
                route = next(left, None)
                if route is not None:
                    asked.append(actor.harm.remote(route))
                    waiting[asked[-1]] = actor

            for actor in actors * _IN_FLIGHT:
                ask(actor)
            given = 0
            with own_errors():
                while given < len(asked):
                    ready, _ = ray.wait(list(waiting)) if waiting else ([], None)
                    for one in ready:
                        ask(waiting.pop(one))
                    while given < len(asked) and asked[given] not in waiting:
                        yield ray.get(asked[given])
                        given += 1

        try:
            yield harms
        finally:
            for actor in actors:
                ray.kill(actor)


class _Trying:
    """One process with a model and the calibration prompts."""

    def __init__(self, make: Callable[[], Harm]) -> None:
        self._harm = make()

    def harm(self, route: Route) -> float:
        return self._harm(route)
