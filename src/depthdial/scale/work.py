"""Items of work on Ray Data: a process each for some of them, and the files that a run without Ray writes too.

The processes call the same function of the same job as a local run, which writes finished units by atomic rename and passes
over what is there. So a run that is killed goes on with Ray or without, and an item that Ray gives out twice is done once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

from depthdial.errors import InputError
from depthdial.progress import progress_bar
from depthdial.scale.cluster import cluster, quiet, share_of
from depthdial.scale.settings import RaySettings

_IN_FLIGHT = 2  # items that a process has at hand: the one that it is at, and the next


class Job(Protocol):
    """Work in items that several processes may do; `measure.sweep.Sweep` is one."""

    def items(self) -> Sequence[int]: ...

    def is_done(self, item: int) -> bool: ...

    def pieces(self, items: Iterable[int]) -> int: ...

    def run_shared(self, items: Iterable[int]) -> None: ...

    def collect(self) -> Any: ...


def run_on_ray(make: Callable[[], Job], settings: RaySettings, *, job: Job | None = None, progress: bool = False) -> Any:
    """Do the items of a job that are not done yet, and collect what all of them give.

    Args:
        make: makes the job, and what it needs, such as the model; called once in each process.
        job: the same job here, where it is made already.

    Returns:
        What `collect` of the job gives.

    Raises:
        InputError: if the job has no folder, Ray is not installed or cannot be reached, or an item raises one.
    """
    job = job or make()
    if getattr(getattr(job, "store", job), "folder", None) is None:
        raise InputError("A run on Ray needs a folder that all its processes write to: give out.")
    left = [item for item in job.items() if not job.is_done(item)]
    with progress_bar("on Ray", job.pieces(job.items()), show=progress) as advance:
        advance(job.pieces(job.items()) - job.pieces(left))
        if left:
            with cluster(settings) as ray:
                for item in _finished(ray, make, left, settings):
                    advance(job.pieces([item]))
    return job.collect()


def _finished(ray: Any, make: Callable[[], Job], left: Sequence[int], settings: RaySettings) -> Iterator[int]:
    """Each item as it is finished."""
    from ray.data import ActorPoolStrategy, DataContext

    share, context = share_of(ray, settings), DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, context, "enable_progress_bars", shown)
        stack.enter_context(quiet("ray.data"))
        # Ray Data starts a killed process again by itself, and gives it again what it was at.
        done = ray.data.from_items([{"item": item} for item in left], override_num_blocks=len(left)).map_batches(
            _Worker,
            fn_constructor_args=(make,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(share.actors, len(left)), max_tasks_in_flight_per_actor=_IN_FLIGHT),
            **share.of_each,
        )
        for row in done.iter_rows():
            if row["refused"]:
                raise InputError(row["refused"])
            yield int(row["item"])


class _Worker:
    """One process with the job that it makes."""

    def __init__(self, make: Callable[[], Job]) -> None:
        self._make, self._job = make, cast("Job | None", None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "refused": [self._refusal([int(item) for item in batch["item"]])]}

    def _refusal(self, items: Sequence[int]) -> str:
        """Run items; the sentence of an InputError, which as an exception Ray Data tells at length, without its cause."""
        try:
            if self._job is None:
                self._job = self._make()
            self._job.run_shared(items)
        except InputError as error:
            return str(error)
        return ""
