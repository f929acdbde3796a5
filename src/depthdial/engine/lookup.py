"""Prompt lookup: drafts that copy what followed an answer's last tokens where these stood before.

The idea is prompt-lookup decoding (Saxena, github.com/apoorvumang/prompt-lookup-decoding; `prompt_lookup_num_tokens` in
transformers). The longest match counts, of those the latest, and an answer's own repetitions are copied on and on.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # tokens of a match


class Lookup:
    """The tokens of one row and where each n-gram of them stood last.

    Args:
        tokens: of the prompt.

    Example:
        >>> Lookup([7, 1, 2, 3, 4, 5, 1, 2]).draft(2)  # behind an earlier 1, 2, a match of two tokens
        ([3, 4], 2)
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens of the answer."""
        for token in tokens:
            place = len(self._tokens)
            # An n-gram counts once something follows it.
            for n in range(SHORTEST, min(LONGEST, place) + 1):
                self._behind[tuple(self._tokens[place - n :])] = place
            self._tokens.append(token)

    def draft(self, n_tokens: int) -> tuple[list[int], int]:
        """Up to `n_tokens` that may come next, and the length of the match; none and 0 without a match."""
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            place = self._behind.get(tuple(self._tokens[-n:]))
            if place is not None:
                found = self._tokens[place : place + n_tokens]
                while len(found) < n_tokens:  # the copy has reached the end: what it copied itself comes next
                    found.append(found[len(found) - (len(self._tokens) - place)])
                return found, n
        return [], 0
