"""What a page is put together from: sections, each with text, tables, pictures and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depthdial.report.kit.differences import MarkedText
from depthdial.report.kit.tables import Column, cell_parts

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
    """Answers of several routes, each (route, score, text), to one sequence; its prompt where rows hold it."""

    sequence_id: str
    answers: Sequence[tuple[str, str, str | MarkedText]]
    prompt: str = ""


@dataclass(frozen=True)
class Section:
    """Printed in the order of the fields.

    Attributes:
        paragraphs: before pictures and tables; `notes`: after them.
        is_folded: behind its title, until it is opened or printed.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
    is_folded: bool = False


def as_table(caption: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One of the report's tables, under its column names and with its decimals."""
    names = list(rows[0]) if rows else []
    body = [[cell_parts(name, row[name]) for name in names] for row in rows]
    return Table(caption, [Column(name).label for name in names], body)


def pairs_table(caption: str, pairs: Sequence[tuple[str, str]]) -> Table:
    """Settings and their values."""
    return Table(caption, ["setting", "value"], [[(text, "") for text in pair] for pair in pairs], is_text=True)


def file_name(name: str) -> str:
    """A name that any file system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name.lower())[:60]
