"""Words in which a text differs from another, for terminals and pages. Standard library only."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class Piece:
    """A stretch of a text; `is_new` where the other text does not have it at this place."""

    text: str
    is_new: bool


@dataclass(frozen=True)
class MarkedText:
    """A text in pieces, as a page prints it: what is new between `mark` tags, all else escaped."""

    pieces: Sequence[Piece]

    def __str__(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def __html__(self) -> str:
        return "".join(_marked(html.escape(piece.text), piece.is_new) for piece in self.pieces)


def differences(first: str, text: str) -> list[Piece]:
    """A text in pieces, of whole words with the space before them, beside the text that it is compared with.

    >>> [piece.text for piece in differences("the cat sat down", "the dog sat") if piece.is_new]
    [' dog']
    """
    ours, theirs = _WORD.findall(text), _WORD.findall(first)
    matched = SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks()
    pieces: list[Piece] = []
    place = 0
    for block in matched:
        _add(pieces, ours[place : block.b], True)
        _add(pieces, ours[block.b : block.b + block.size], False)
        place = block.b + block.size
    return pieces


def _add(pieces: list[Piece], words: Sequence[str], is_new: bool) -> None:
    if words:
        pieces.append(Piece("".join(words), is_new))


def _marked(text: str, is_new: bool) -> str:
    if not is_new:
        return text
    space = text[: len(text) - len(text.lstrip())]
    return f"{space}<mark>{text[len(space) :]}</mark>"
