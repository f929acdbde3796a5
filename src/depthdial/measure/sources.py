"""Where the rows of a task come from: the built-in set, named sets of the Hugging Face Hub, files, and folders of splits.

A file that has no splits of its own is used whole, or, when a split is asked for, divided 70/15/15 into train, validation
and test by a seed. The division depends on the seed and the number of rows alone: it is the same in every process. Within
a split the rows keep the order of the file.
"""

from __future__ import annotations

import csv
import importlib.resources
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.measure.fields import Row

WHOLE = "all"
SEEDED_SPLITS = ("train", "validation", "test")
PAPER_SEED = 42
_BUILTIN_SPLITS = ("calibration", "test")
_MAX_CSV_FIELD_CHARS = 2**31 - 1


@dataclass(frozen=True)
class HubSet:
    """A named data set of the Hub.

    Attributes:
        repo, config: what `datasets.load_dataset` is called with.
        is_seeded: it has one split on the Hub, which is divided here with the paper's seed.
        max_prompt_tokens, max_response_tokens: budgets, those of the paper where it has the set.
    """

    repo: str
    config: str | None
    is_seeded: bool
    max_prompt_tokens: int
    max_response_tokens: int


# The paper (arXiv 2410.20022) gives Alpaca 512 tokens, a quarter of them for the prompt, and CNN/DailyMail 2,048, 70% of
# them for the article. It has no SAMSum and no Dolly; these get 1,024, three quarters for the prompt.
HUB_SETS: dict[str, HubSet] = {
    "alpaca": HubSet("tatsu-lab/alpaca", None, True, 128, 384),
    "cnn_dailymail": HubSet("abisee/cnn_dailymail", "3.0.0", False, 1433, 615),
    "samsum": HubSet("knkarthick/samsum", None, False, 768, 256),
    "dolly": HubSet("databricks/databricks-dolly-15k", None, True, 768, 256),
}
TASK_NAMES = ("builtin", *HUB_SETS)


@dataclass(frozen=True)
class Source:
    """The rows of one split, not yet looked into.

    Attributes:
        name, split: of the task.
        origin: a Hub id, a file's or folder's name, or "builtin"; without the folders above it, which differ by machine.
        seed: the one that divided the file; the user's where nothing was divided.
        columns: names of the rows' fields.
        rows: (number, row) pairs, to be read once; the number counts the file's rows from 1 (lines, in JSON Lines).
        skips_incomplete: rows with an empty prompt or reference are left out: a user cannot mend the Hub's.
        max_prompt_tokens, max_response_tokens: the set's own budgets, None for none.
    """

    name: str
    split: str
    origin: str
    seed: int
    columns: tuple[str, ...]
    rows: Iterable[tuple[int, Row]]
    skips_incomplete: bool = False
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None


def open_source(name_or_path: str | os.PathLike[str], split: str | None, seed: int) -> Source:
    """The rows that a task's name or path stands for.

    A name wins over a file of the same name: write `./alpaca` for the latter.

    Raises:
        InputError: if the name is unknown, the file missing, empty or unreadable, the split unknown, or the Hub or
            `datasets` out of reach.
    """
    if isinstance(name_or_path, str):
        if name_or_path == "builtin":
            return _open_builtin(split, seed)
        if name_or_path in HUB_SETS:
            return _open_hub_set(name_or_path, split)
    elif not isinstance(name_or_path, os.PathLike):
        raise InputError(f"A task is a name or a path, not {name_or_path!r}: use one of {', '.join(TASK_NAMES)}, or a file.")
    path = Path(name_or_path)
    if path.is_dir() and name_or_path != "":  # an empty text is no name; Path would take it for the current folder
        return _open_folder(path, split, seed)
    if path.is_file():
        return _open_file(path, split, seed)
    looks_like_path = isinstance(name_or_path, os.PathLike) or path.suffix or len(path.parts) > 1
    what = f"There is no file or folder '{path}'" if looks_like_path else f"Unknown task {str(name_or_path)!r}"
    raise InputError(
        f"{what}: name one of {', '.join(TASK_NAMES)}, or give the path of a {_kinds()} file or a folder of them."
    )


def split_rows(n_rows: int, split: str, seed: int) -> list[int]:
    """Indices of a split's rows in ascending order: 70% train, 15% validation, 15% test (rounded down), or `all`.

    The proportions and the seed for Alpaca, 42, are the paper's (arXiv 2410.20022); the draw is our own.

    Raises:
        InputError: if the split is unknown, or would be empty.
    """
    if split == WHOLE:
        return list(range(n_rows))
    if split not in SEEDED_SPLITS:
        raise InputError(f"Unknown split {split!r}: use one of {', '.join((*SEEDED_SPLITS, WHOLE))}.")
    # Sorting by random() and not shuffle(): of Python's draws only random() promises the same numbers in every version.
    draw = random.Random(seed)
    order = sorted(range(n_rows), key=[draw.random() for _ in range(n_rows)].__getitem__)
    n_held = n_rows * 15 // 100
    n_train = n_rows - 2 * n_held
    bounds = {"train": (0, n_train), "validation": (n_train, n_train + n_held), "test": (n_train + n_held, n_rows)}
    chosen = sorted(order[slice(*bounds[split])])
    if not chosen:
        raise InputError(f"The {split} split of {n_rows} rows is empty: use split={WHOLE!r}, or give at least 7 rows.")
    return chosen


def _open_builtin(split: str | None, seed: int) -> Source:
    split = split or "test"
    if split not in (*_BUILTIN_SPLITS, WHOLE):
        raise _unknown_split(split, "builtin", (*_BUILTIN_SPLITS, WHOLE))
    packaged = importlib.resources.files("depthdial.measure") / "data" / "builtin.jsonl"
    with importlib.resources.as_file(packaged) as path:
        rows = _read_jsonl(path)
    chosen = [(number, row) for number, row in rows if split in (WHOLE, row["split"])]
    return Source("builtin", split, "builtin", seed, _columns(rows), chosen)


def _open_hub_set(name: str, split: str | None) -> Source:
    hub_set = HUB_SETS[name]
    split = split or "test"
    allowed = (*SEEDED_SPLITS, WHOLE) if hub_set.is_seeded else SEEDED_SPLITS
    if split not in allowed:
        raise _unknown_split(split, name, allowed)
    data = _download(name, hub_set, "train" if hub_set.is_seeded else split)
    indices = split_rows(len(data), split if hub_set.is_seeded else WHOLE, PAPER_SEED)
    return Source(
        name,
        split,
        hub_set.repo,
        PAPER_SEED,
        tuple(data.column_names),
        ((i + 1, data[i]) for i in indices),
        skips_incomplete=True,
        max_prompt_tokens=hub_set.max_prompt_tokens,
        max_response_tokens=hub_set.max_response_tokens,
    )


def _download(name: str, hub_set: HubSet, split: str) -> Any:
    instead = "give a file instead (--data FILE, or its path to dd.task)"
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"Task {name!r} comes from the Hugging Face Hub through the package 'datasets', which is not installed: "
            f"pip install 'depthdial[hub]', or {instead}."
        ) from error
    try:
        return datasets.load_dataset(hub_set.repo, hub_set.config, split=split)
    except Exception as error:  # whatever the network, the Hub's client or the set itself raises: it is out of reach
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"Task {name!r} could not be had from the Hugging Face Hub ({hub_set.repo}: {reason}): "
            f"check the network, or {instead}."
        ) from error


def _open_folder(folder: Path, split: str | None, seed: int) -> Source:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in READERS or not path.is_file():
            continue
        if path.stem in files:
            raise InputError(f"Folder '{folder}' has two files for split {path.stem!r}: keep one of them.")
        files[path.stem] = path
    if not files:
        raise InputError(f"Folder '{folder}' holds no {_kinds()} file: put in test.jsonl, or name a file.")
    if split is None:
        split = "test" if len(files) > 1 else next(iter(files))
    if split not in files:
        raise _unknown_split(split, f"folder '{folder}'", files)
    rows = _read(files[split])
    # The resolved name, for "." has none of its own.
    return Source(folder.resolve().name, split, f"{folder.resolve().name}/{files[split].name}", seed, _columns(rows), rows)


def _open_file(path: Path, split: str | None, seed: int) -> Source:
    rows = _read(path)
    split = split or WHOLE
    chosen = [rows[i] for i in split_rows(len(rows), split, seed)]
    return Source(path.stem, split, path.name, seed, _columns(rows), chosen)


def _unknown_split(split: str, what: str, known: Iterable[str]) -> InputError:
    return InputError(f"Unknown split {split!r} of {what}: use one of {', '.join(known)}.")


def _columns(rows: Sequence[tuple[int, Row]]) -> tuple[str, ...]:
    """Every field that some row has, in order of appearance: a row that lacks one is then an error, and not a guess."""
    return tuple(dict.fromkeys(key for _, row in rows for key in row))


def _read(path: Path) -> list[tuple[int, Row]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"'{path}' is of an unknown kind: give a {_kinds()} file.")
    try:
        rows = reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror or error}): check the file.") from error
    if not rows:
        raise InputError(f"'{path}' holds no rows: give a file with at least one.")
    return rows


def _read_jsonl(path: Path) -> list[tuple[int, Row]]:
    return list(_jsonl_rows(path))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    # Lines of the file and not str.splitlines(), which also breaks at separators that JSON strings may hold.
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"Row {number} of '{path}' is not valid JSON ({error.msg}): mend that line.") from error
            yield number, _as_record(record, number, path)


def _read_json(path: Path) -> list[tuple[int, Row]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"'{path}' is not valid JSON ({error.msg}, line {error.lineno}): mend it, "
            "or call it .jsonl if it has one object a line."
        ) from error
    if not isinstance(records, list):
        raise InputError(
            f"'{path}' is not a JSON list of objects: write [{{...}}, {{...}}], or one object a line in a .jsonl."
        )
    return [(number, _as_record(record, number, path)) for number, record in enumerate(records, start=1)]


def _as_record(record: object, number: int, path: Path) -> Row:
    if not isinstance(record, dict):
        raise InputError(f'Row {number} of \'{path}\' is not a JSON object: write it as {{"field": "text", ...}}.')
    return record


def _read_csv(path: Path) -> list[tuple[int, Row]]:
    previous = csv.field_size_limit(_MAX_CSV_FIELD_CHARS)  # the default, 131,072 characters, is less than a long document
    rows: list[tuple[int, Row]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
                if None in row:
                    raise InputError(
                        f"Row {number} of '{path}' has more values than the header has names: quote its commas."
                    )
                rows.append((number, {key: value for key, value in row.items() if value is not None}))
    except csv.Error as error:
        raise InputError(f"Row {len(rows) + 1} of '{path}' is not valid CSV ({error}): mend it.") from error
    finally:
        csv.field_size_limit(previous)
    return rows


def _read_parquet(path: Path) -> list[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            records = file.read().to_pylist()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"'{path}' cannot be read as Parquet ({reason}): write it anew, or give a JSONL file.") from error
    return list(enumerate(records, start=1))


READERS: dict[str, Callable[[Path], list[tuple[int, Row]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _kinds() -> str:
    return ", ".join(list(READERS)[:-1]) + " or " + list(READERS)[-1]
