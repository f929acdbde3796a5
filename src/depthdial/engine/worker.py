"""The one thread that runs an engine's model: it takes what callers submit, and ticks while there is something to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from depthdial.engine.answers import Answer
from depthdial.engine.handles import failure
from depthdial.engine.scheduler import Scheduler
from depthdial.engine.threads import give_back_threads
from depthdial.errors import InputError
from depthdial.views.snapshot import as_is


@dataclass(frozen=True, eq=False)
class Job:
    """A pass that is no answer, such as the log-probabilities of a text: it runs between two ticks.

    Attributes:
        is_patient: whether it waits until rows are free and nobody else waits for them.
    """

    run: Callable[[], Any]
    is_patient: bool = False
    future: Future[Any] = field(default_factory=Future)

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.run())
        except Exception as error:
            self.future.set_exception(failure(error, 0))


class Worker:
    """Runs a scheduler in a thread of its own, which starts with the first answers or jobs and ends with `stop`.

    Args:
        device: the model's.
    """

    def __init__(self, scheduler: Scheduler, device: torch.device) -> None:
        self._scheduler, self._device = scheduler, device
        self._changed = threading.Condition()
        self._inbox: list[Answer] = []
        self._jobs: list[Job] = []
        self._thread: threading.Thread | None = None
        self._is_closed = self._cancels = self._is_poked = False

    @property
    def n_inbox(self) -> int:
        return len(self._inbox)

    def check_open(self) -> None:
        """InputError after `stop`."""
        if self._is_closed:
            raise InputError("The engine is closed: make another one with dd.Engine(model, tokenizer).")

    def submit(self, answers: Sequence[Answer] = (), jobs: Sequence[Job] = ()) -> None:
        """Queue answers and jobs.

        Raises:
            InputError: after `stop`.
        """
        with self._changed:
            self.check_open()
            self._inbox += answers
            self._jobs += jobs
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="depthdial-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def poke(self) -> None:
        """Say that a request was cancelled."""
        with self._changed:
            self._is_poked = True
            self._changed.notify_all()

    def stop(self, cancel: bool = False) -> None:
        """Take no further answers, end those that there are, or cancel them, and wait for the thread.

        Jobs that have not begun are cancelled with them, and patient ones in any case.
        """
        with self._changed:
            self._is_closed = True
            self._cancels |= cancel
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        torch.get_num_threads()  # has this thread take over the number that was set in another one
        try:
            with as_is(self._device):
                self._work()
        finally:  # whatever ended it, nobody waits for ever
            with self._changed:
                self._is_closed = True
                self._scheduler.add(self._inbox)
                self._inbox = []
                jobs, self._jobs = self._jobs, []
            for job in jobs:
                job.future.cancel()
            self._scheduler.fail_all(RuntimeError("the engine's thread has ended"))

    def _work(self) -> None:
        scheduler = self._scheduler
        while True:
            if scheduler.is_idle:
                give_back_threads()  # so that whoever computes meanwhile is as fast as without an engine
            with self._changed:
                self._changed.wait_for(
                    lambda: self._inbox or self._is_closed or self._is_poked or self._jobs or not scheduler.is_idle
                )
                new, self._inbox = self._inbox, []
                if self._is_poked:
                    scheduler.has_cancelled, self._is_poked = True, False
                is_closed, cancels = self._is_closed, self._cancels
                job = None if cancels else self._next_job(is_closed)
            scheduler.add(new)
            new = []  # nothing is held while the thread waits
            if cancels:
                for answer in scheduler.everyone():
                    answer.handle.cancel()
                scheduler.has_cancelled = True
            elif is_closed and scheduler.is_idle and job is None:
                return
            if job is not None:
                job()
                job = None
            try:
                scheduler.tick()
            except Exception as error:  # nothing that a request does comes up here
                scheduler.fail_all(error)
            if is_closed and scheduler.is_idle and (cancels or not self._jobs):
                return

    def _next_job(self, is_closed: bool) -> Job | None:
        """The first job whose turn it is; one at a time, so that rows step between them."""
        has_room = not (self._inbox or is_closed) and self._scheduler.has_room
        chosen = next((job for job in self._jobs if has_room or not job.is_patient), None)
        if chosen is not None:
            self._jobs.remove(chosen)
        return chosen
