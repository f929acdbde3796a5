"""The one progress bar of long work: how much is done, how long it took, how long it will take.

Where standard error is no terminal (a log, a pipe) there is no bar but a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_SEC = 30.0
_SPEED_LINES = 10  # the remaining time follows from the speed since so many lines back


class Advance(Protocol):
    """Called after each finished piece of work; `note` says more of it, and is asked where a line is written."""

    def __call__(self, pieces: float = 1, note: Callable[[], str] | None = None) -> None: ...


@contextmanager
def progress_bar(label: str, total: float, *, show: bool = True) -> Iterator[Advance]:
    """A bar on standard error, with elapsed and remaining time. `total` and the advances share any unit of work."""
    if not show:
        yield lambda pieces=1, note=None: None
        return
    if not sys.stderr.isatty():
        with _lines(label, total) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = ("{task.description:<12}", BarColumn(bar_width=32), TaskProgressColumn(), TimeElapsedColumn(), "left")
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        said = time.monotonic()

        def advance(pieces: float = 1, note: Callable[[], str] | None = None) -> None:
            nonlocal said
            progress.advance(task, pieces)
            if note is not None and time.monotonic() - said >= LINE_EVERY_SEC:
                said = time.monotonic()
                progress.console.print(f"{label}: {note()}", markup=False, highlight=False)  # a line above the bar

        yield advance


@contextmanager
def _lines(label: str, total: float) -> Iterator[Advance]:
    """A line every LINE_EVERY_SEC, as work is finished, and one at the end.

    The remaining time is told from the second advance on: the first may be what an earlier run had done, in no time.
    """
    started = said = time.monotonic()
    done = 0.0
    last: Callable[[], str] | None = None
    marks: deque[tuple[float, float]] = deque(maxlen=_SPEED_LINES)  # when, and what was done then

    def say(now: float) -> None:
        share = done / total if total else 1.0
        more = "" if last is None else f"; {last()}"
        print(f"{label}: {share:.0%}, {_clock(now - started)}{left(now)}{more}", file=sys.stderr, flush=True)

    def left(now: float) -> str:
        since, held = marks[0] if marks else (now, done)
        if done == held or done >= total:
            return ""
        return f", {_clock((total - done) * (now - since) / (done - held))} left"

    def advance(pieces: float = 1, note: Callable[[], str] | None = None) -> None:
        nonlocal done, said, last
        done, last = done + pieces, note
        now = time.monotonic()
        is_due = now - said >= LINE_EVERY_SEC
        if is_due:
            said = now
            say(now)
        if is_due or not marks:
            marks.append((now, done))

    try:
        yield advance
    finally:
        say(time.monotonic())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
