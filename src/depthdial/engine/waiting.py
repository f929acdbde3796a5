"""The queue of an engine: answers that have no row yet, in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from depthdial.engine.answers import Answer
from depthdial.engine.schedules import Schedule
from depthdial.routes import Route


class Queue:
    """Answers that wait, and whose turn is next."""

    def __init__(self) -> None:
        self._waiting: deque[Answer] = deque()
        self._turn: tuple[Route | None, int] = (None, -1)  # the route that rows are filled up for, and the last one to be

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._waiting)

    def add(self, answers: Sequence[Answer]) -> None:
        """At the end."""
        self._waiting += answers

    def put_back(self, answers: Sequence[Answer]) -> None:
        """At the front, those that came first before the others."""
        self._waiting.extendleft(sorted(answers, key=lambda answer: -answer.number))

    def next(self, schedule: Schedule) -> Answer:
        """The first; by route, the first of the route that rows are filled up for now."""
        if schedule == "layer-major":
            return self._waiting[0]
        route, last = self._turn
        # Only those who waited when the route's turn began, so that the others' turns come.
        same = (answer for answer in self._waiting if answer.number <= last and answer.route == route)
        found = None if route is None else next(same, None)
        if found is None:
            found = self._waiting[0]
            own = found.route if isinstance(found.route, Route) else None
            self._turn = own, max(answer.number for answer in self._waiting)
        return found

    def remove(self, answer: Answer) -> None:
        self._waiting.remove(answer)

    def clear(self) -> None:
        self._waiting.clear()

    def drop_done(self) -> None:
        """Forget those whose request is done, for it was cancelled or has failed."""
        self._waiting = deque(answer for answer in self._waiting if not answer.handle.done)
