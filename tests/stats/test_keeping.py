from __future__ import annotations

import math

import pytest

from depthdial.errors import InputError
from depthdial.stats.intervals import Interval
from depthdial.stats.keeping import Keeping


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.95, 0.99, "yes"),
        (0.96, 1.10, "yes"),
        (0.90, 0.949, "no"),
        (0.90, 0.95, "undecided"),
        (0.94, 0.99, "undecided"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, answer: str) -> None:
    keeping = Keeping(Interval(0.95, low, high, 12), 0.95)
    assert keeping.answer == answer
    assert f"Keeps at least 95% of it: {answer}, 95.0%" in keeping.sentence("it")


def test_a_sentence_without_an_interval() -> None:
    told = Keeping(Interval(0.5, math.nan, math.nan, 1), 0.875).sentence("the full model's answers")
    assert told == "Keeps at least 87.5% of the full model's answers: undecided, 50.0% on 1 row."


@pytest.mark.parametrize("keep", [0, 1.01, math.nan, "most"])
def test_a_share_is_asked_for(keep: float) -> None:
    with pytest.raises(InputError, match="Invalid keep"):
        Keeping(Interval(1.0, 1.0, 1.0, 2), keep)
