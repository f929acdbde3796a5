"""Reading files of rows: JSON, JSON Lines, CSV and TSV (plain or compressed), Parquet and Arrow.

Tables with types are pyarrow's: of these only the columns that are asked for are read. Text stays with the standard
library's `json` and `csv`: pyarrow wants one type a column, refuses lone surrogates, doubled keys and lines of more than a
block, takes texts that look like dates for dates, and knows no blank after a delimiter; and errors here name the row.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from depthdial.data.fields import Row
from depthdial.errors import InputError

Rows = list[tuple[int, Row]]

STDIN = "-"
TEXT_KINDS = (".jsonl", ".json", ".csv", ".tsv")
TABLE_KINDS = (".parquet", ".arrow")
KINDS = (*TEXT_KINDS, *TABLE_KINDS)
_COMPRESSED = (".gz", ".bz2", ".zst")
_MAX_CSV_FIELD_CHARS = 2**31 - 1
_MOST_DIGITS = 4300  # more are no number for Python
# In the order in which they are looked for: the marks of UTF-16 are beginnings of those of UTF-32.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_WRAPPERS = ("data", "rows", "examples")


@dataclass(frozen=True)
class File:
    """One file of rows, opened.

    Attributes:
        columns: every field that some row has, in order of appearance.
        n_rows: how many rows there are.
        read: (number, row) pairs, with at least the fields asked for; numbers count from 1 (lines, in JSON Lines).
    """

    columns: tuple[str, ...]
    n_rows: int
    read: Callable[[Collection[str]], Rows]


def kind_of(path: Path) -> str | None:
    """ ".jsonl" of "a.jsonl.gz"; None for a file that is not one of rows."""
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in TEXT_KINDS else None
    return suffix if suffix in KINDS else None


def stem_of(path: Path) -> str:
    """A file's name without what says its kind."""
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSED else path.stem


def kinds() -> str:
    return ", ".join(KINDS[:-1]) + " or " + KINDS[-1]


def open_file(path: Path) -> File:
    """The rows of a file; those of standard input ("-") or of a pipe, which are JSON, are read once a process.

    Raises:
        InputError: if it is of an unknown kind, cannot be read, is malformed, or holds no rows.
    """
    is_pipe = str(path) == STDIN or (path.exists() and not path.is_file())
    kind = ".jsonl" if is_pipe else kind_of(path)
    if kind is None:
        raise InputError(f"'{path}' is of an unknown kind: give a {kinds()} file.")
    try:
        if kind in TABLE_KINDS:
            file = _open_table(path, kind)
        else:
            file = _open_text(_stream(str(path)) if is_pipe else _bytes(path), path, kind)
    except OSError as error:
        what = "pipe" if is_pipe else "file"
        raise InputError(f"'{path}' cannot be read ({_reason(error)}): check the {what}.") from error
    if not file.n_rows:
        raise InputError(f"'{path}' holds no rows: give a file with at least one.")
    return file


@cache
def _stream(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() not in _COMPRESSED:
        return path.read_bytes()
    import pyarrow

    with pyarrow.input_stream(str(path), compression="detect") as stream:
        return stream.read()


def _open_text(raw: bytes, path: Path, kind: str) -> File:
    if raw.startswith(b"version https://git-lfs"):
        raise _pointer(path)
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    del raw
    # Universal newlines; str.splitlines() would also break at separators that JSON strings may hold.
    rows = _json_rows(text, path, kind) if kind in (".jsonl", ".json") else _csv_rows(text, path, kind)
    # Every field that some row has: a row that lacks one is then an error, and not a guess.
    return File(tuple(dict.fromkeys(key for _, row in rows for key in row)), len(rows), lambda names: rows)


def _json_rows(text: str, path: Path, kind: str) -> Rows:
    """One object a line where the first line is one, whatever the file is called; else one document."""
    first, whole = next((line for line in io.StringIO(text) if line.strip()), ""), text.strip()
    try:
        value = _DECODER.decode(first) if first else {}
        is_lines = isinstance(value, dict) and not (whole == first.strip() and _inner(value) is not None)
    except json.JSONDecodeError:
        is_lines = kind == ".jsonl" and first.lstrip()[0] not in "[{"
    except RecursionError:
        is_lines = kind == ".jsonl"
    if is_lines:
        return list(_line_rows(text, path))
    try:
        records = _document(whole)
    except json.JSONDecodeError as error:
        if kind == ".jsonl":
            return list(_line_rows(text, path))  # which names the line
        raise InputError(
            f"'{path}' is not valid JSON ({error.msg}, line {error.lineno}): mend it, "
            "or call it .jsonl if it has one object a line."
        ) from error
    except RecursionError:
        raise InputError(f"'{path}' nests values too deeply to be read: flatten it.") from None
    return [(number, _as_record(record, number, path)) for number, record in enumerate(records, start=1)]


def _document(text: str) -> list[Any]:
    """The records of a JSON list, of an object around one, or of objects one after the other."""
    records, place = [], 0
    while place < len(text):
        value, place = _DECODER.raw_decode(text, place)
        records += value if isinstance(value, list) else [value]
        while place < len(text) and text[place].isspace():
            place += 1
    wrapped = _inner(records[0]) if len(records) == 1 else None
    return records if wrapped is None else wrapped


def _inner(value: Any) -> list[Any] | None:
    inner = [value[name] for name in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(name), list)]
    return inner[0] if len(inner) == 1 and all(isinstance(row, dict) for row in inner[0]) else None


def _line_rows(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            record = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise InputError(f"Row {number} of '{path}' is not valid JSON ({error.msg}): mend that line.") from error
        except RecursionError:
            raise InputError(f"Row {number} of '{path}' nests values too deeply to be read: flatten it.") from None
        yield number, _as_record(record, number, path)


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


_DECODER = json.JSONDecoder(parse_int=_integer)


def _as_record(record: object, number: int, path: Path) -> Row:
    if not isinstance(record, dict):
        raise InputError(f'Row {number} of \'{path}\' is not a JSON object: write it as {{"field": "text", ...}}.')
    return record


def _csv_rows(text: str, path: Path, kind: str) -> Rows:
    header = text.split("\n", 1)[0]
    counts = {mark: header.count(mark) for mark in (",", ";", "\t")}
    delimiter = "\t" if kind == ".tsv" else max(counts, key=lambda mark: counts[mark])
    previous = csv.field_size_limit(_MAX_CSV_FIELD_CHARS)  # the default, 131,072 characters, is less than a long document
    rows: Rows = []
    try:
        # Blanks behind the delimiters of the header are the file's style, and no part of names and values.
        has_blanks = f"{delimiter} " in header
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=has_blanks)
        lines.fieldnames = [name.strip() for name in lines.fieldnames or ()]
        for number, row in enumerate(lines, start=1):
            if None in row:
                raise InputError(f"Row {number} of '{path}' has more values than the header has names: quote its commas.")
            rows.append((number, {key: value for key, value in row.items() if value is not None}))
    except csv.Error as error:
        raise InputError(f"Row {len(rows) + 1} of '{path}' is not valid CSV ({error}): mend it.") from error
    finally:
        csv.field_size_limit(previous)
    return rows


def _open_table(path: Path, kind: str) -> File:
    from pyarrow import ArrowInvalid, ipc, memory_map, parquet

    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise _pointer(path)
    with _readable(path, kind):
        if kind == ".parquet":
            with parquet.ParquetFile(path) as file:
                whole, names, n_rows = None, file.schema_arrow.names, file.metadata.num_rows
        else:
            source = memory_map(str(path))
            try:
                whole = ipc.open_stream(source).read_all()  # as `datasets` saves
            except ArrowInvalid:
                source.seek(0)
                whole = ipc.open_file(source).read_all()
            names, n_rows = whole.column_names, whole.num_rows

    def read(wanted: Collection[str]) -> Rows:
        table: Any = whole
        if table is None:
            with _readable(path, kind), parquet.ParquetFile(path) as file:
                table = file.read(columns=[name for name in names if name in wanted])
        columns: dict[str, list[Any]] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name in wanted:
                try:
                    columns[name] = column.to_pylist()
                except Exception as error:  # pyarrow raises what Python's types do: dates out of range, text not UTF-8
                    raise InputError(f"Field {name!r} of '{path}' cannot be read ({_reason(error)}): give text.") from error
        rows = zip(*columns.values(), strict=True)
        return [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, start=1)]

    return File(tuple(names), n_rows, read)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = kind[1:].capitalize()
        raise InputError(
            f"'{path}' cannot be read as {what} ({_reason(error)}): write it anew, or give a JSONL file."
        ) from error


def _pointer(path: Path) -> InputError:
    return InputError(f"'{path}' is a Git LFS pointer and cannot be read as rows: fetch the file itself (git lfs pull).")


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__
