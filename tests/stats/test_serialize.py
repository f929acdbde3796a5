"""Dataclasses as documents and back, by their type hints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from depthdial.errors import InputError
from depthdial.stats.serialize import dump, load


@dataclass(frozen=True)
class Part:
    name: str
    ends: tuple[float | None, float] | None


@dataclass(frozen=True, eq=False)
class Whole:
    curve: np.ndarray
    other: np.ndarray | None
    parts: tuple[Part, ...]
    first: Part
    numbers: tuple[int, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


WHOLE = Whole(np.array([1.0, np.nan]), None, (Part("a", None), Part("b", (None, 2.0))), Part("c", (0.5, 1.0)), (1, 2))


def test_a_document_is_plain_json_and_loads_as_it_was() -> None:
    document = json.loads(json.dumps(dump(WHOLE), allow_nan=False))
    assert document["curve"] == [1.0, None] and document["parts"][1] == {"name": "b", "ends": [None, 2.0]}
    again = load(Whole, document, "whole")
    np.testing.assert_array_equal(again.curve, WHOLE.curve)
    assert (again.other, again.parts, again.first, again.numbers) == (None, WHOLE.parts, WHOLE.first, (1, 2))
    assert dump(again) == document


def test_what_has_a_default_may_be_missing() -> None:
    document = dump(WHOLE)
    del document["numbers"]
    assert load(Whole, document, "whole").numbers is None


def test_numbers_of_numpy_become_plain_ones() -> None:
    given = {"n": np.int64(3), "x": np.float32(0.5), "flag": np.bool_(True), "none": float("nan"), "deep": [(1, {"y": 2})]}
    found = dump(given)
    assert found == {"n": 3, "x": 0.5, "flag": True, "none": None, "deep": [[1, {"y": 2}]]}
    assert type(found["n"]) is int and type(found["flag"]) is bool


@pytest.mark.parametrize("change", [{"colour": 1}, {"curve": "x"}, {"parts": 3}, {"parts": [{"name": "a"}]}, {"first": [1]}])
def test_another_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="This is not a stored whole"):
        load(Whole, {**dump(WHOLE), **change}, "whole")
    with pytest.raises(InputError, match="This is not a stored whole"):
        load(Whole, {}, "whole")
