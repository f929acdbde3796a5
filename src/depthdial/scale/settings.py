"""Settings of runs on Ray. Standard library alone, so that the command line can read them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from depthdial.checks import whole
from depthdial.errors import InputError


@dataclass(frozen=True)
class RaySettings:
    """Where work on Ray runs.

    Attributes:
        ray_address: Cluster of --ray, such as ray://head:10001; None for RAY_ADDRESS, or one started here.
        ray_actors: Processes of --ray, each with a model of its own; None for one a GPU, or two without GPUs.

    Raises:
        InputError: for a number of processes below 1.
    """

    ray_address: str | None = None
    ray_actors: int | None = None

    def __post_init__(self) -> None:
        if self.ray_actors is not None:
            whole("ray_actors", self.ray_actors, 1)


def require_ray() -> None:
    """InputError unless Ray is installed."""
    if find_spec("ray") is None:
        raise InputError("Runs on Ray need the package ray: pip install 'depthdial[ray]'.")
