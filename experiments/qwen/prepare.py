"""Write the folders of splits that run.sh reads: code (prompts.jsonl), ordinary (first turns of mt_bench), and their mix.

    python -m experiments.qwen.prepare MT_BENCH_QUESTIONS OUT

Splits follow fixed rules. Task number n of prompts.jsonl: n % 5 = 0 train, which the search reads, 1 and 2 calibration,
of the certificate, 3 and 4 test. A question of mt_bench by its id: id % 10 = 0 train, id % 5 = 1 and 2 calibration, 3
and 4 test. The mix has in train the first 12 code tasks and the 8 questions (one of each category), and no other split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).with_name("prompts.jsonl")
N_CODE_IN_MIX = 12
_BY_REST = {1: "calibration", 2: "calibration", 3: "test", 4: "test"}

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def code_split(number: int) -> str:
    """The split of a task by its number."""
    return _BY_REST.get(number % 5, "train")


def question_split(question_id: int) -> str | None:
    """The split of a question by its id; None for those that no split has."""
    return "train" if question_id % 10 == 0 else _BY_REST.get(question_id % 5)


def prepare(questions: Path, out: Path) -> None:
    """Write `out/code`, `out/ordinary` and `out/mix`, a file for each split."""
    code: dict[str, list[Row]] = {}
    for row in read_rows(PROMPTS):
        code.setdefault(row["split"], []).append(
            {"id": row["id"], "instruction": row["instruction"], "output": row["output"]}
        )
    ordinary: dict[str, list[Row]] = {}
    for row in read_rows(questions):
        split = question_split(row["question_id"])
        if split is not None:
            ordinary.setdefault(split, []).append({"id": f"mt-{row['question_id']}", "prompt": row["turns"][0]})
    mix = [{"id": row["id"], "prompt": row["instruction"]} for row in code["train"][:N_CODE_IN_MIX]] + ordinary["train"]
    for name, splits in {"code": code, "ordinary": ordinary, "mix": {"train": mix}}.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    prepare(options.questions, options.out)
