"""Rows of the certificates' experiment, as a folder of splits each: what a controller is fitted on, calibration, test.

    python experiments/certified/prepare.py ALPACA_DIR DOLLY_DIR CNN_DAILYMAIL_DIR OUT_DIR

Nothing is drawn here: all three folders are random samples already, in random order. `fit` is the head of the train rows;
`calibration` is the validation rows and then the train rows behind those of the fit; `test` is the head of the test rows.
A prompt that stands in two of them is kept in the first of test, fit and calibration; rows whose reference ROUGE cannot see
(another script, or no word at all) are left out of all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from depthdial.data.fields import Columns, find_columns
from depthdial.data.leakage import prompt_hash
from depthdial.measure.quality import is_seen

# Rows of the fit, of calibration and of the test; CNN/DailyMail has the longest prompts, and two cores read them slowly.
SIZES = {"alpaca": (480, 1000, 700), "dolly": (320, 500, 300), "cnn_dailymail": (96, 300, 160)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def parts_of(folder: Path, sizes: tuple[int, int, int]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part, by its name."""
    train, validation, test = (rows_of(folder / f"{split}.jsonl") for split in ("train", "validation", "test"))
    wanted = {"test": (test, sizes[2]), "fit": (train, sizes[0]), "calibration": ([*validation, *reversed(train)], sizes[1])}
    seen: set[str] = set()
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, (rows, size) in wanted.items():
        parts[name] = []
        for row in rows:
            example = columns_of(row).read(row, name)
            if len(parts[name]) < size and prompt_hash(example) not in seen and any(map(is_seen, example.references)):
                seen.add(prompt_hash(example))
                parts[name].append(row)
    return parts


def columns_of(row: dict[str, Any]) -> Columns:
    return find_columns(list(row), None, "rows")


def main(folders: list[Path], out: Path) -> None:
    for (name, sizes), folder in zip(SIZES.items(), folders, strict=True):
        for part, rows in parts_of(folder, sizes).items():
            path = out / name / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            print(f"{name}: {len(rows)} rows of {part}")


if __name__ == "__main__":
    main([Path(one) for one in sys.argv[1:4]], Path(sys.argv[4]))
