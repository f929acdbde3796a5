"""Pass or fail of one answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.data.tasks import Example
from depthdial.errors import InputError
from depthdial.measure import passing
from depthdial.measure.passing import check_patterns, contains, exact_match, regex, scored, source_of
from tests.conftest import make_task


def example(*references: str) -> Example:
    return Example("row", "how many", "", references[0], references[1:])


@pytest.mark.parametrize(
    ("check", "references", "answer", "passes"),
    [
        (exact_match, ("Forty two",), "  forty\ttwo. ", True),
        (exact_match, ("42",), "It is 42", False),
        (exact_match, ("(B)", "Lyon"), "lyon", True),
        (exact_match, ("(B)",), "b", True),
        (exact_match, ("?",), "!", False),
        (exact_match, ("?",), "", False),
        (exact_match, ("", "4"), "", False),
        (contains, ("4",), "The answer is 4.", True),
        (contains, ("4",), "The answer is 42.", False),
        (contains, ("4",), "It is 4.5", False),
        (contains, ("400",), "1,400", False),
        (contains, ("4",), "1, 2, 4, 8", True),
        (contains, ("", "4"), "5", False),
        (contains, ("a.b",), "axb", False),
        (contains, ("C++",), "Use c++!", True),
        (contains, ("no", "Yes"), "Well, YES", True),
        (regex, (r"\b4\b",), "42 or 4", True),
        (regex, ("^Four",), "four", False),
        (regex, ("", "4"), "5", False),
        (exact_match, ("42",), "“42”", True),
        (exact_match, ("café",), "cafe\u0301", True),
        (contains, ("cafe\u0301",), "Au café.", True),
    ],
)
def test_what_passes(check, references, answer, passes):
    assert check(example(*references), answer) == float(passes)


def test_a_score_is_a_number_from_0_to_1():
    assert scored(lambda *_: True, example("x"), "") == 1.0
    for bad in (None, "much", -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"The score of row 'row' is .*: give a number from 0"):
            scored(lambda *_, bad=bad: bad, example("x"), "")


def test_a_reference_that_is_no_pattern_is_refused():
    task = make_task(["a"], ["a"])
    for pattern in ("(", "a{99999999999999999999}"):
        with pytest.raises(InputError, match="The reference of row 'small-0' is no regular expression"):
            check_patterns(make_task(["a"], [pattern]))
    check_patterns(replace(task, examples=(example("a+"),)))


def test_a_pattern_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(passing, "_SEARCH_SEC", 0.02)
    with pytest.raises(
        InputError, match=r"The regular expression of row .row. is not done with an answer in 0\.02 s: write"
    ):
        regex(example("(a|aa)+$"), "a" * 60 + "!")


def test_a_function_is_known_by_its_source():
    assert source_of(contains) == source_of(contains) != source_of(regex)
    assert source_of(float) != source_of(int)
