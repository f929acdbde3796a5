"""Ray's cluster: the one that is there, or a local one for as long as it is needed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from depthdial.errors import InputError
from depthdial.scale.settings import RaySettings, require_ray

_ACTORS_ON_CPUS = 2


@dataclass(frozen=True)
class Share:
    """What each process of a run gets of the cluster.

    Attributes:
        actors: processes.
        cpus, gpus: of each; on CPUs PyTorch runs as many threads.
    """

    actors: int
    cpus: float
    gpus: float

    @property
    def of_each(self) -> dict[str, Any]:
        """In Ray's words."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @property
    def with_restarts(self) -> dict[str, Any]:
        """The same for an actor that starts again when it is killed, and does again what it was at."""
        return {**self.of_each, "max_restarts": -1, "max_task_retries": -1}


@contextlib.contextmanager
def cluster(settings: RaySettings) -> Iterator[Any]:
    """The module `ray`, connected. A cluster that is started here ends here.

    Raises:
        InputError: where Ray is not installed, or there is no cluster at the address.
    """
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray

    if ray.is_initialized():  # the caller's own, which stays
        yield ray
        return
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **({"include_dashboard": False} if address == "local" else {}), **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"Cannot reach Ray at {address!r} ({reason}): check --ray-address.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def share_of(ray: Any, settings: RaySettings) -> Share:
    """An equal share of a cluster's processors for each process.

    Raises:
        InputError: if there are fewer processors than processes.
    """
    found = ray.cluster_resources()
    cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    actors = settings.ray_actors or gpus or min(_ACTORS_ON_CPUS, max(cpus, 1))
    if actors > cpus:
        raise InputError(f"Ray has {cpus} CPUs for {actors} processes: give a smaller --ray-actors.")
    return Share(actors, max(cpus // actors, 1), gpus / actors if gpus < actors else 1)


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Inside, a logger of Ray's says no more than errors."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raise an InputError of a process as it would have been raised here."""
    try:
        yield
    except Exception as error:
        found = _input_error(error)
        if found is None:
            raise
        raise InputError(str(found)) from error


def _input_error(error: BaseException | None) -> BaseException | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError):
            # Ray's own class of it adds the process's traceback to the text.
            return getattr(error, "cause", error)
        error = getattr(error, "cause", None) or error.__cause__
    return None
