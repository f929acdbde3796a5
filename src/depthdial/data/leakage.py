"""Leakage: the sequences that something was made on, so that nothing is judged by what it has seen.

What is fitted (a route family, an adapter, gates, a controller, a certificate) keeps the hashes of its prompts, and whoever
evaluates it asks here. A hash is of the prompt's text alone: the same row under another id, or in another split, is the
same row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

from depthdial.data.tasks import Example, Task
from depthdial.errors import InputError
from depthdial.hf.trained import trained_on

SEARCHED, _GATED = "to search the routes", "to train the gates"
_ELSEWHERE = "take rows that were not, from another split"
_ALLOWING = "take rows that were not, or allow_searched_rows=True (--allow-searched-rows) for a number that is too good"


def prompt_hash(example: Example) -> str:
    """16 hexadecimal digits of the SHA-256 of an example's instruction and document, or of its whole conversation."""
    texts = [example.instruction, example.document, *([example.messages] if example.messages else [])]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def prompt_hashes(task: Task) -> tuple[str, ...]:
    """One for each example of a task, in its order."""
    return tuple(prompt_hash(example) for example in task.examples)


def require_apart(task: Task, used: Collection[str], purpose: str, remedy: str = _ELSEWHERE) -> None:
    """Refuse a task that shares a prompt with `used`.

    Args:
        used: prompt hashes.
        purpose: what they were used for, as it stands in the sentence ("to search the routes").
        remedy: the sentence's end.

    Raises:
        InputError: with how many there are, and one of them.
    """
    known = set(used)
    shared = [e.id for e in task.examples if prompt_hash(e) in known]
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(task.examples)} sequences (such as {shared[0]!r}) were used {purpose}: {remedy}."
        )


def seen_before(routes: Iterable[object] = (), model: Any = None) -> dict[str, frozenset[str]]:
    """Hashes of the prompts that routes and a model were made on, by what they were used for; only what is known of them.

    Args:
        routes: searched ones know their prompts (`Route.searched_on`) wherever they were saved and read, and so do gates and
            controllers (`seen`, by what they were used for).
        model: its weights and its adapter know what they were trained on, if Depthdial trained them.
    """
    found = {SEARCHED: frozenset(), _GATED: frozenset(), **({} if model is None else trained_on(model))}
    for route in routes:
        own = {SEARCHED: getattr(route, "searched_on", ()), _GATED: getattr(route, "trained_on", ())}
        for purpose, prompts in (*own.items(), *getattr(route, "seen", {}).items()):
            found[purpose] = found.get(purpose, frozenset()).union(prompts)
    return {purpose: prompts for purpose, prompts in found.items() if prompts}


def require_unsearched(task: Task, routes: Iterable[object] = (), model: Any = None, *, can_allow: bool = True) -> None:
    """Refuse a task with rows that some of the routes were searched on, or the model trained on: see `seen_before`.

    They would be judged by what they were made for.

    Args:
        can_allow: whether the caller takes `allow_searched_rows`.

    Raises:
        InputError: with how many rows there are, one of them, and how to have them all the same.
    """
    for purpose, used in seen_before(routes, model).items():
        require_apart(task, used, purpose, _ALLOWING if can_allow else _ELSEWHERE)


def require_no_test_split(task: Task, purpose: str) -> None:
    """Refuse the split that is for evaluation alone.

    Args:
        purpose: what the rows were wanted for, as it stands in the sentence ("fit a controller").

    Raises:
        InputError: if the task is a test split.
    """
    if task.split == "test":
        raise InputError(f"{task.name}'s test split is for evaluation alone: {purpose} on train or validation rows.")
