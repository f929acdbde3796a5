"""Copies are what followed the longest, latest earlier match: against a search by brute force."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from depthdial.engine.lookup import LONGEST, SHORTEST, Lookup


def by_search(tokens, n_tokens):
    for n in range(LONGEST, SHORTEST - 1, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[-n:] and n <= len(tokens):
                copied = list(tokens)
                for i in range(n_tokens):
                    copied.append(copied[place + i])
                return copied[len(tokens) :], n
    return [], 0


@hypothesis.given(st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=4), st.integers(0, 6))
def test_drafts_are_those_of_a_search(parts, n_tokens):
    lookup, tokens = Lookup(parts[0]), list(parts[0])
    for part in parts[1:]:
        lookup.draft(3)  # asking changes nothing
        lookup.extend(part)
        tokens += part
    assert len(lookup) == len(tokens)
    assert lookup.draft(n_tokens) == by_search(tokens, n_tokens)


def test_a_repetition_is_copied_on_and_on():
    assert Lookup([5, 1, 2, 1, 2]).draft(5) == ([1, 2, 1, 2, 1], 2)
    assert Lookup([9, 9, 9]).draft(3) == ([9, 9, 9], 2)


def test_without_a_match_there_is_no_draft():
    assert Lookup([]).draft(4) == ([], 0)
    assert Lookup([1, 2, 3, 4]).draft(4) == ([], 0)
