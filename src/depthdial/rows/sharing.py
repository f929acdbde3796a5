"""Work that several processes share through a folder: whoever comes first does an item, and the others wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")


def share_work(
    items: Iterable[T], folder: Path | None, name: Callable[[T], str], is_done: Callable[[T], bool], run: Callable[[T], None]
) -> Iterator[T]:
    """Run every item that is not done; yields each once it is.

    What another process is at is left for last, then waited for, and done here should that process die.

    Args:
        folder: the one that is shared; None where nobody shares.
        name: a file name for an item, the same in every process.
    """
    left = list(items)
    for is_patient in (False, True):
        for item in list(left):
            try:
                with nullcontext() if folder is None else work_lock(folder, name(item), -1 if is_patient else 0):
                    if folder is None or not is_done(item):
                        run(item)
            except Timeout:
                continue
            left.remove(item)
            yield item


def work_lock(folder: Path, name: str, timeout_sec: float = -1) -> FileLock:
    """A lock of that name in a folder; the system lets go of that of a process which is killed."""
    path = folder / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout_sec)
