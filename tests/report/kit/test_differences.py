"""Words that differ, against what hypothesis makes up; and that a page shows them and runs none of them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.report.kit.differences import MarkedText, differences

TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "<b>", "&", "\n", "é", " "]), max_size=8).map(" ".join)


@given(TEXTS, TEXTS)
def test_pieces_are_the_text_and_what_is_not_new_is_in_the_first_in_order(first: str, text: str) -> None:
    pieces = differences(first, text)
    assert "".join(piece.text for piece in pieces) == text
    kept = iter(re.findall(r"\s*\S+|\s+$", first))
    old = [word for piece in pieces if not piece.is_new for word in re.findall(r"\s*\S+|\s+$", piece.text)]
    assert all(word in kept for word in old)  # `in` takes words off the iterator, so that order counts


@given(TEXTS)
def test_equal_texts_have_nothing_new(text: str) -> None:
    assert not any(piece.is_new for piece in differences(text, text))


@pytest.mark.parametrize(
    ("first", "text", "new"),
    [
        ("the cat sat", "the dog sat", [" dog"]),
        ("the cat", "the cat sat down", [" sat down"]),
        ("", "all of it", ["all of it"]),
        ("the cat", "", []),
    ],
)
def test_what_is_marked(first: str, text: str, new: list[str]) -> None:
    assert [piece.text for piece in differences(first, text) if piece.is_new] == new


def test_a_page_shows_marks_and_escapes_everything_else() -> None:
    marked = MarkedText(differences("the cat", "the <script>x</script> & cat"))
    assert str(marked) == "the <script>x</script> & cat"
    assert marked.__html__() == "the <mark>&lt;script&gt;x&lt;/script&gt; &amp;</mark> cat"


@given(TEXTS, TEXTS)
def test_what_a_browser_reads_is_the_text(first: str, text: str) -> None:
    read: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = read.append  # type: ignore[method-assign]
    parser.feed(MarkedText(differences(first, text)).__html__())
    parser.close()
    assert "".join(read) == text
