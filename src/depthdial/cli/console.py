"""What the command line prints, and to what: tables, what to run next, what the library says; consoles of few characters.

A console may know ASCII alone (`LC_ALL=C`), or a code page without bars and stars (Windows), and an argument may hold bytes
that are no text. None of that may stop a command: characters are spelled with those that the console knows.
"""

from __future__ import annotations

import codecs
import io
import logging
import shlex
import sys
import unicodedata
import warnings
from typing import Any

import typer

from depthdial.errors import DataWarning, RouteWarning

_SPELLED = str.maketrans(
    {
        **dict.fromkeys("█▓▒░■", "#"),
        **dict.fromkeys("·•∙", "."),
        **dict.fromkeys("–—−‐‑─━═╌╸╺", "-"),
        **dict.fromkeys("│┃║╎", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇╈┳┻╋", "+"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **{"★": "*", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "±": "+/-", "≈": "~", "μ": "u", "√": "sqrt", "⁄": "/"},
    }
)
_ERRORS = "depthdial-spelled"
_WIDE = 130  # columns that a table with intervals needs
_LEAST_ANSWER = 36  # columns that an answer beside others needs


def prepare_console() -> None:
    """Make standard output and error take any text, in the characters that they know."""
    codecs.register_error(_ERRORS, _on_error)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if codecs.lookup(stream.encoding or "ascii").name == "ascii":
            # click writes UTF-8 where it finds ASCII, and so is told that it has found UTF-8.
            buffered = stream.line_buffering
            setattr(sys, name, _Ascii(stream.detach(), encoding="utf-8", errors=_ERRORS, line_buffering=buffered))
        else:
            stream.reconfigure(errors=_ERRORS)


def show_notices() -> None:
    """Print what the library logs for its user, such as the one download of the built-in model, and its warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("depthdial: %(message)s"))
    logger = logging.getLogger("depthdial")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    show = warnings.showwarning

    def show_in_style(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if issubclass(category, (RouteWarning, DataWarning)):
            typer.echo(f"depthdial: {message}", err=True)
        else:
            show(message, category, *where, **options)

    warnings.showwarning = show_in_style


def spelled(text: str) -> str:
    """`text` in ASCII: lines and bars by their like, letters without their accents, the rest as question marks.

    >>> spelled("★ café – 10 ± 2")
    '* cafe - 10 +/- 2'
    """
    return text if text.isascii() else "".join(map(_spell, text))


def _spell(letter: str) -> str:
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter).translate(_SPELLED) if part.isascii())
    return plain or ("" if unicodedata.combining(letter) else "?")


def _on_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spelled(error.object[error.start : error.end]), error.end


class _Ascii(io.TextIOWrapper):
    """A stream that is written to in ASCII."""

    def write(self, text: str) -> int:
        super().write(spelled(text))
        return len(text)


def prompt_words(prompt_depth: str) -> list[str]:
    """The words of a next command by which its prompts run as they did here."""
    return ["--prompt-depth", "route"] if prompt_depth == "route" else []


def say_next(*words: object, err: bool = False) -> None:
    """The command that a reader would run next, to be copied."""
    typer.echo(f"Next: depthdial {shlex.join(map(str, words))}", err=err)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of the report's rows, under the report's names; in a narrow terminal without the intervals."""
    from depthdial.report.kit.tables import Column, cell_parts

    parts = 1 if _console().width < _WIDE else 2
    if rows:
        cells = [[" ".join(filter(None, cell_parts(name, value)[:parts])) for name, value in row.items()] for row in rows]
        print_table(title, [Column(name).label for name in rows[0]], cells)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; outside a terminal as wide as it needs to be."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_answers(columns: list[tuple[str, str, str]]) -> None:
    """Print answers beside each other, each (title, text, how it was made), in as many columns as the width has room for.

    Words that the first answer does not have at their place are underlined; without styles they stand in {+ +}, as in git's
    word diffs.
    """
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    from depthdial.report.kit.differences import differences

    console, first = _console(), columns[0][1]
    is_styled = console.is_terminal and console.color_system is not None
    width = max(_LEAST_ANSWER, console.width // len(columns) - 1)
    panels = []
    for title, answer, how in columns:
        text = Text()
        for piece in differences(first, answer):
            words = piece.text.lstrip()
            text.append(piece.text[: len(piece.text) - len(words)])
            shown = f"{{+{words}+}}" if piece.is_new and words and not is_styled else words
            text.append(shown, style="bold underline" if piece.is_new else "")
        text.append(f"\n\n{how}", style="dim")
        panels.append(Panel(text, title=Text(title), title_align="left", width=width))
    console.print(Columns(panels, padding=(0, 1)))
