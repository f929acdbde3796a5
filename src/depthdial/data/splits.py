"""The files of a folder by split: a file each, or as the Hub lays data sets out.

| layout                                                          | the splits                              |
| --------------------------------------------------------------- | --------------------------------------- |
| `test.jsonl`, `train.csv.gz`, `questions.parquet`               | named by the files                      |
| `name_train.jsonl`, `dev.jsonl`                                 | also found as train, as validation      |
| `train-00000-of-00003.parquet`, .. (there or in `data/`)        | the shards together                     |
| `train/0000.parquet`, `default/train/0000.parquet`              | named by the folders                    |

Files in folders count where the folder itself holds none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from depthdial.data.readers import kind_of, kinds, stem_of
from depthdial.errors import InputError

WHOLE = "all"
# What a split goes by, as in `datasets`.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"^(?P<split>.*?)[-_.]?(?P<number>\d{4,})(?:-of-(?P<of>\d{4,}))?(?:-[0-9a-f]{8,})?$")
# Files beside the rows that are about them.
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "settings.json"}


@dataclass(frozen=True)
class _Part:
    """A file: which split it is of, and which shard of that."""

    path: Path
    split: str
    config: str
    shard: int | None
    of: int | None


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of every split of a folder, shards in their order.

    Raises:
        InputError: if the folder holds no data, two files for one split, or several configurations, or a shard is missing.
    """
    here = sorted(path for path in folder.iterdir() if _is_rows(path, folder))
    parts = [_part(path, folder) for path in here or sorted(path for path in folder.rglob("*") if _is_rows(path, folder))]
    if not parts:
        raise InputError(f"Folder '{folder}' holds no {kinds()} file: put in test.jsonl, or name a file.")
    configs = sorted({part.config for part in parts})
    if len(configs) > 1:
        raise InputError(
            f"Folder '{folder}' holds several sets ({', '.join(name or '.' for name in configs)}): give the folder of one."
        )
    splits = dict.fromkeys(part.split for part in parts)
    return {split: _in_order([part for part in parts if part.split == split], split, folder) for split in splits}


def find_split(split: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `split` stands for: itself, or the only one with a word for it ("name_train")."""
    known = list(known)
    if split in known:
        return split
    found = [name for name in known if _keyword(name) == split]
    return found[0] if len(found) == 1 else None


def _is_rows(path: Path, folder: Path) -> bool:
    inner = path.relative_to(folder).parts
    is_hidden = any(part.startswith((".", "__")) for part in inner)
    return path.is_file() and kind_of(path) is not None and not is_hidden and path.name not in _NOT_ROWS


def _part(path: Path, folder: Path) -> _Part:
    above = list(path.relative_to(folder).parts[:-1])
    stem, shard, of = stem_of(path), None, None
    if matched := _SHARD.match(stem):
        stem, shard = matched["split"], int(matched["number"])
        of = int(matched["of"]) if matched["of"] else None
    name = stem
    if _keyword(stem) is None or stem in ("data", "part", ""):
        inner = next((i for i in reversed(range(len(above))) if _keyword(above[i]) is not None), None)
        if inner is not None:
            name = above.pop(inner).removeprefix("partial-")
        elif stem in ("", "part", "data") and shard is not None:
            name = WHOLE
    config = "/".join(part for part in above if part != "data")
    return _Part(path, name, config, shard, of)


def _keyword(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in _WORDS.items() if any(word in known for word in words)), None)


def _in_order(parts: list[_Part], split: str, folder: Path) -> list[Path]:
    if len(parts) == 1 and parts[0].of in (None, 1):
        return [parts[0].path]
    numbers = [part.shard for part in parts]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"Folder '{folder}' has two files for split {split!r}: keep one of them.")
    of = next((part.of for part in parts if part.of is not None), None)
    missing = next((i for i in range(of or 0) if i not in numbers), None)
    if missing is not None:
        raise InputError(f"Folder '{folder}' lacks shard {missing} of the {of} of split {split!r}: fetch it.")
    return [part.path for part in sorted(parts, key=lambda part: part.shard or 0)]
