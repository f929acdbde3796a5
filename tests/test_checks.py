"""What guards let through, and the sentence for what they do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from depthdial.checks import choice, number, share, switched_on, whole
from depthdial.errors import InputError


def test_a_value_within_its_limits_comes_back() -> None:
    assert whole("x", 3, 1) == 3
    assert whole("x", -3) == -3
    assert whole("x", np.int64(2), 1, 2) == 2
    assert whole("x", 10**400) == 10**400
    assert number("x", 0.5, 0, 1) == 0.5
    assert number("x", 1, above=0) == 1
    assert share("x", 1) == 1
    assert choice("x", "a", ("a", "b")) == "a"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, np.True_, math.nan, 11])
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        whole("x", value, 1, 10)
    assert str(caught.value) == f"Invalid x {value!r}: use a whole number of at least 1 and at most 10."


@pytest.mark.parametrize("value", [0, 1, -0.5, True, "0.5", None, math.nan, math.inf])
def test_no_number(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        number("x", value, above=0, below=1)
    assert str(caught.value) == f"Invalid x {value!r}: use a number above 0 and below 1."


@pytest.mark.parametrize("value", [0, 1.01, False])
def test_no_share(value: Any) -> None:
    with pytest.raises(InputError, match=r"use a number above 0 and at most 1\.$"):
        share("x", value)


def test_no_choice() -> None:
    with pytest.raises(InputError, match=r"^Unknown colour 'red': use green, blue or grey\.$"):
        choice("colour", "red", ("green", "blue", "grey"))


@pytest.mark.parametrize(("value", "is_on"), [(None, True), ("1", True), ("0", False)])
def test_a_switch_is_on_unless_it_is_0(monkeypatch, value, is_on):
    monkeypatch.delenv("DEPTHDIAL_TRIED", raising=False)
    if value is not None:
        monkeypatch.setenv("DEPTHDIAL_TRIED", value)
    assert switched_on("DEPTHDIAL_TRIED", on="to try", off="not to") is is_on


def test_a_switch_takes_nothing_else(monkeypatch):
    monkeypatch.setenv("DEPTHDIAL_TRIED", "yes")
    with pytest.raises(InputError, match="DEPTHDIAL_TRIED is 'yes': set it to 1 to try or to 0 not to"):
        switched_on("DEPTHDIAL_TRIED", on="to try", off="not to")
