"""What a page is put together from: sections, each with text, tables, pictures and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table as the template prints it: every cell a (text, interval); the first column heads its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str]]]
    is_text: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, its caption, and what it shows for who cannot see it."""

    name: str
    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Sample:
    """Answers of several routes to one sequence."""

    sequence_id: str
    answers: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Section:
    """Printed in the order of the fields.

    Attributes:
        paragraphs: before pictures and tables; `notes`: after them.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
