"""Sources of a task's rows: the built-in set, named sets of the Hugging Face Hub, files, and folders of splits.

A file that has no splits of its own is used whole, or, when a split is asked for, divided 70/15/15 into train, validation
and test by a seed. The division depends on the seed and the number of rows alone: it is the same in every process. Within
a split the rows keep the order of the file.
"""

from __future__ import annotations

import importlib.resources
import os
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.data.fields import Row, well_formed
from depthdial.data.readers import STDIN, File, kinds, open_file, stem_of
from depthdial.data.splits import WHOLE, find_split, split_files
from depthdial.errors import InputError

SEEDED_SPLITS = ("train", "validation", "test")
PAPER_SEED = 42
_BUILTIN_SPLITS = ("calibration", "test")


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
        read: (number, row) pairs with at least the fields asked for; the number counts the file's rows from 1 (lines, in
            JSON Lines), and those of shards one after the other.
        skips_incomplete: rows with an empty prompt or reference are left out: a user cannot mend the Hub's.
        max_prompt_tokens, max_response_tokens: the set's own budgets, None for none.
    """

    name: str
    split: str
    origin: str
    seed: int
    columns: tuple[str, ...]
    read: Callable[[Collection[str]], Iterable[tuple[int, Row]]]
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
    if str(path) == STDIN or (path.exists() and not path.is_dir()):
        name = "stdin" if str(path) == STDIN else stem_of(path) if path.is_file() else path.name
        return _of_file(open_file(path), name, path.name, split, seed)
    looks_like_path = isinstance(name_or_path, os.PathLike) or path.suffix or len(path.parts) > 1
    what = f"There is no file or folder '{path}'" if looks_like_path else f"Unknown task {str(name_or_path)!r}"
    raise InputError(
        f"{what}: name one of {', '.join(TASK_NAMES)}, or give the path of a {kinds()} file or a folder of them."
    )


def splits_of(name_or_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits that a task's name or folder has of its own; none for a file, or what is not there.

    Raises:
        InputError: for a folder whose splits cannot be told.
    """
    if name_or_path == "builtin":
        return _BUILTIN_SPLITS
    if isinstance(name_or_path, str) and name_or_path in HUB_SETS:
        return SEEDED_SPLITS
    path = Path(name_or_path)
    return tuple(split_files(path)) if path.is_dir() and name_or_path != "" else ()


def held_out_split(name_or_path: str | os.PathLike[str]) -> str | None:
    """The split to search, fit or train on by default: never the one to evaluate on. None: a file is used whole."""
    splits = splits_of(name_or_path)
    if "calibration" in splits and find_split("train", splits) is None:
        return "calibration"
    return "train" if len(splits) > 1 else None


def has_split(name_or_path: str | os.PathLike[str], split: str) -> bool:
    """Whether a task's name or folder has a split of this name."""
    return find_split(split, splits_of(name_or_path)) is not None


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
    packaged = importlib.resources.files("depthdial.data") / "builtin.jsonl"
    with importlib.resources.as_file(packaged) as path:
        file = open_file(path)
    chosen = [(number, row) for number, row in file.read(file.columns) if split in (WHOLE, row["split"])]
    return Source("builtin", split, "builtin", seed, file.columns, lambda names: chosen)


def _open_hub_set(name: str, split: str | None) -> Source:
    hub_set = HUB_SETS[name]
    split = split or "test"
    allowed = (*SEEDED_SPLITS, WHOLE) if hub_set.is_seeded else SEEDED_SPLITS
    if split not in allowed:
        raise _unknown_split(split, name, allowed)
    data = _download(name, hub_set, "train" if hub_set.is_seeded else split)
    indices = split_rows(len(data), split if hub_set.is_seeded else WHOLE, PAPER_SEED)

    def read(names: Collection[str]) -> Iterable[tuple[int, Row]]:
        chosen = data.select_columns([name for name in data.column_names if name in names])
        return ((i + 1, chosen[i]) for i in indices)

    budgets = hub_set.max_prompt_tokens, hub_set.max_response_tokens
    return Source(name, split, hub_set.repo, PAPER_SEED, tuple(data.column_names), read, True, *budgets)


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
    files = split_files(folder)
    name = folder.resolve().name  # for "." has no name of its own
    if list(files) == [WHOLE]:  # shards without a split
        shards = files[WHOLE]
        return _of_file(_joined(shards), name, name if len(shards) > 1 else f"{name}/{shards[0].name}", split, seed)
    if split is None:
        split = "test" if len(files) > 1 else next(iter(files))
    known = find_split(split, files)
    if known is None:
        raise _unknown_split(split, f"folder '{folder}'", files)
    file = _joined(files[known])
    inner = files[known][0].relative_to(folder).as_posix() if len(files[known]) == 1 else known
    return Source(well_formed(name), split, well_formed(f"{name}/{inner}"), seed, file.columns, file.read)


def _joined(paths: list[Path]) -> File:
    """Shards as one file, whose rows are numbered on."""
    files = [open_file(path) for path in paths]
    if len(files) == 1:
        return files[0]

    def read(names: Collection[str]) -> list[tuple[int, Row]]:
        rows, before = [], 0
        for file in files:
            own = file.read(names)
            rows += [(before + number, row) for number, row in own]
            before += own[-1][0]
        return rows

    columns = dict.fromkeys(name for file in files for name in file.columns)
    return File(tuple(columns), sum(file.n_rows for file in files), read)


def _of_file(file: File, name: str, origin: str, split: str | None, seed: int) -> Source:
    split = split or WHOLE
    indices = split_rows(file.n_rows, split, seed)

    def read(names: Collection[str]) -> list[tuple[int, Row]]:
        rows = file.read(names)
        return [rows[i] for i in indices]

    return Source(well_formed(name), split, well_formed(origin), seed, file.columns, read)


def _unknown_split(split: str, what: str, known: Iterable[str]) -> InputError:
    return InputError(f"Unknown split {split!r} of {what}: use one of {', '.join(known)}.")
