"""Scores of one answer: pass or fail against what a row's reference says, or a function of the caller's.

Each is a number in [0, 1], and more is better. Texts are compared without case, and with all white space as one space.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import regex as patterns

from depthdial.data.tasks import Example, Task
from depthdial.errors import InputError

# What a caller may give: score(example, answer), 1 or True for a good answer, 0 or False for a bad one.
Scorer = Callable[[Example, str], float]
_AROUND = " \t\n.,;:!?\"'`()[]*“”‘’«»„…。，！？"
_SEARCH_SEC = 10.0  # for a regular expression in one answer


def plain(text: str) -> str:
    """Without case, with single spaces.

    >>> plain(" The\\n Answer ")
    'the answer'
    """
    # An accent may be part of its letter or stand behind it: references and answers write either.
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _bare(text: str) -> str:
    """Also without punctuation around it, unless it is nothing else."""
    return plain(text).strip(_AROUND) or plain(text)


def exact_match(example: Example, answer: str) -> float:
    """1 where the answer is one of the references, but for case, white space, and punctuation around it.

    >>> exact_match(Example("1", "2 + 2", "", "4"), " 4. ")
    1.0
    """
    said = _bare(answer)
    return float(any(said == _bare(text) for text in example.references if text.strip()))


def contains(example: Example, answer: str) -> float:
    """1 where one of the references stands in the answer, as whole words and whole numbers.

    >>> example = Example("1", "2 + 2", "", "4")
    >>> contains(example, "The answer is 4."), contains(example, "It is 42."), contains(example, "It is 4.5.")
    (1.0, 0.0, 0.0)
    """
    said = plain(answer)
    return float(any(re.search(_whole(plain(text)), said) for text in example.references if text.strip()))


def _whole(text: str) -> str:
    """A pattern that finds a text where no word goes on on either side, and no number behind a point or comma."""
    before = r"(?<!\d[.,])" if text[0].isdigit() else ""
    after = r"(?![.,]\d)" if text[-1].isdigit() else ""
    return rf"(?<!\w){before}{re.escape(text)}(?!\w){after}"


def regex(example: Example, answer: str) -> float:
    """1 where one of the references, as a regular expression, is found in the answer as it is.

    >>> regex(Example("1", "2 + 2", "", r"(?i)\\bfour\\b|\\b4\\b"), "Four")
    1.0

    Raises:
        InputError: for a pattern that is not done with the answer in time, as one that goes back over it for ever.
    """
    try:
        found = any(patterns.search(text, answer, timeout=_SEARCH_SEC) for text in example.references if text.strip())
    except TimeoutError:
        raise InputError(
            f"The regular expression of row {example.id!r} is not done with an answer in {_SEARCH_SEC:g} s: "
            "write it without repetitions inside of repetitions."
        ) from None
    return float(found)


CHECKS: Mapping[str, Scorer] = {one.__name__: one for one in (exact_match, contains, regex)}


def check_patterns(task: Task) -> None:
    """InputError for a reference that is no regular expression."""
    for example in task.examples:
        for text in example.references:
            try:
                patterns.compile(text)
            except (patterns.error, OverflowError, RecursionError) as error:
                raise InputError(
                    f"The reference of row {example.id!r} is no regular expression ({error}): mend it."
                ) from None


def scored(scorer: Scorer, example: Example, answer: str) -> float:
    """What a scorer gives an answer.

    Raises:
        InputError: if that is no number in [0, 1].
    """
    found: Any = scorer(example, answer)
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value <= 1:  # also NaN
        raise InputError(f"The score of row {example.id!r} is {found!r}: give a number from 0 (bad) to 1 (good).")
    return value


def source_of(scorer: Scorer) -> str:
    """A digest of a function's source, or its name where it has none; by it a plan knows its scorer."""
    try:
        text = inspect.getsource(scorer)
    except (OSError, TypeError):
        text = getattr(scorer, "__qualname__", type(scorer).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
