"""Which sequences something was made on, so that nothing is judged by what it has seen.

What is fitted (a route family, a controller, a certificate) keeps the hashes of its prompts, and whoever evaluates it asks
here. A hash is of the prompt's text alone: the same row under another id, or in another split, is the same row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable

from depthdial.errors import InputError
from depthdial.measure.tasks import Example, Task


def prompt_hash(example: Example) -> str:
    """16 hexadecimal digits of the SHA-256 of an example's instruction and document, or of its whole conversation."""
    texts = [example.instruction, example.document, *([example.messages] if example.messages else [])]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def prompt_hashes(task: Task) -> tuple[str, ...]:
    """One for each example of a task, in its order."""
    return tuple(prompt_hash(example) for example in task.examples)


def require_apart(task: Task, used: Collection[str], purpose: str) -> None:
    """Refuse a task that shares a prompt with `used`.

    Args:
        used: prompt hashes.
        purpose: what they were used for, as it stands in the sentence ("to search the routes").

    Raises:
        InputError: with how many there are, and one of them.
    """
    known = set(used)
    shared = [e.id for e in task.examples if prompt_hash(e) in known]
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(task.examples)} sequences (such as {shared[0]!r}) were used {purpose}: take rows "
            "that were not, from another split."
        )


def require_unsearched(task: Task, routes: Iterable[object]) -> None:
    """Refuse a task whose rows some of the routes were searched on: they would be judged by what they were chosen for.

    Args:
        routes: of which those of a searched family know its prompts (`Route.searched_on`).

    Raises:
        InputError: with how many rows there are, one of them, and how to have them all the same.
    """
    used = frozenset().union(*(getattr(route, "searched_on", ()) for route in routes))
    shared = [e.id for e in task.examples if prompt_hash(e) in used]
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(task.examples)} sequences (such as {shared[0]!r}) were used to search the routes: "
            "take rows that were not, or allow_searched_rows=True (--allow-searched-rows) for a number that is too good."
        )


def require_no_test_split(task: Task, purpose: str) -> None:
    """Refuse the split that is for evaluation alone.

    Args:
        purpose: what the rows were wanted for, as it stands in the sentence ("fit a controller").

    Raises:
        InputError: if the task is a test split.
    """
    if task.split == "test":
        raise InputError(f"{task.name}'s test split is for evaluation alone: {purpose} on train or validation rows.")
