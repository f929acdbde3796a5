from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.serve.stops import StopCutter


def streamed(text, stops, size, **options):
    cutter = StopCutter(stops, **options)
    pieces = [cutter.add(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join(pieces) + cutter.end(), cutter.found


@given(
    st.text("abc", max_size=24),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_however_it_comes_the_text_ends_at_the_first_stop(text, stops, size):
    ends = [(text.find(one) + len(one), -len(one), one) for one in stops if one in text]
    end, _, stop = min(ends, default=(len(text), 0, None))
    assert streamed(text, stops, size) == (text[: end - len(stop or "")], stop)
    assert streamed(text, stops, size, keeps_stop=True) == (text[:end], stop)


@pytest.mark.parametrize(("keeps", "text"), [(False, "one "), (True, "one two")])
def test_a_stop_string_may_stay(keeps, text):
    assert streamed("one two three", ["two"], 3, keeps_stop=keeps) == (text, "two")


def test_only_what_may_begin_a_stop_is_held_back():
    cutter = StopCutter(["</s>"])
    assert [cutter.add(piece) for piece in ("a <", "b", "</", "i>", "</s", "> c")] == ["a ", "<b", "", "</i>", "", ""]
