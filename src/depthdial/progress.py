"""The one progress bar of long work: how much is done, how long it took, how long it will take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called after each finished piece of work."""

    def __call__(self, pieces: float = 1) -> None: ...


@contextmanager
def progress_bar(label: str, total: float, *, show: bool = True) -> Iterator[Advance]:
    """A bar on standard error, with elapsed and remaining time. `total` and the advances share any unit of work."""
    if not show:
        yield lambda pieces=1: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda pieces=1: progress.advance(task, pieces)
