"""The page of a check: the verdict on something that ships, its scores, and both answers side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.report.kit.differences import MarkedText, differences
from depthdial.report.kit.page import write_page
from depthdial.report.kit.parts import Sample, Section, as_table, pairs_table
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import Cells, provenance_table, settings_table
from depthdial.rows.store import CHECK_FILE, load_rows
from depthdial.stats.intervals import Interval
from depthdial.stats.serialize import load

_MOST_SEQUENCES = 50
LABELS = {
    "same": "answers that are equal",
    "agreement": "answer up to the first difference, share of its tokens",
    "rouge_l_answers": "ROUGE-L between both answers",
    "rouge_l": "ROUGE-L against the references",
    "rouge_l_full": "ROUGE-L of the full model against the references",
}


def write_check_report(folder: Path | str) -> Path:
    """Write `report.html` and `tables/` of a check's folder, from check.json and rows.parquet.

    Raises:
        InputError: if the folder holds no check, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    told, rows = read_json(folder / CHECK_FILE, "check"), load_rows(folder)
    settings = read_json(folder / "settings.json", "settings")
    table = score_table(told)
    write_table(table, folder / "tables", "check")
    provenance = [
        pairs_table("Provenance of the rows", provenance_table(rows)),
        pairs_table("Settings", settings_table({k: v for k, v in settings.items() if k != "target_first_prompt"})),
    ]
    sections = [
        Section("scores", "Scores", tables=[as_table(f"Means with 95% intervals on {rows.num_rows} rows", table)]),
        *_answers(rows),
        Section("provenance", "Settings and provenance", tables=provenance, is_folded=True),
    ]
    model = str(settings.get("model", ""))
    how = {name: told.get(name, "") for name in ("sentence", "target")} | {"model": model}
    how["max_new_tokens"] = settings.get("max_new_tokens", "")
    return write_page(folder, "check", sections, f"Depthdial check: {model}", **how)


def score_table(told: Mapping[str, Any]) -> list[Cells]:
    """The scores of a check's verdict file, as rows of a table.

    Raises:
        InputError: if the file holds none.
    """
    scores = told.get("scores") if isinstance(told, Mapping) else None
    if not isinstance(scores, Mapping) or not scores:
        raise InputError("The check's verdict holds no scores: run `depthdial check` again.")
    known = [name for name in LABELS if name in scores]
    return [{"score": LABELS[name], "mean": _interval(scores[name])} for name in known]


def _interval(stored: Any) -> Interval:
    """Of a single row without ends, which JSON holds as null."""
    found = load(Interval, stored, "interval")
    return found if found.low is not None else replace(found, low=math.nan, high=math.nan)


def _answers(rows: pa.Table) -> list[Section]:
    samples = []
    for row in rows.slice(0, _MOST_SEQUENCES).to_pylist():
        full, other = row.get("full_answer"), row.get("target_answer")
        if full is None or other is None:
            continue
        answers: list[Any] = [] if row.get("reference") is None else [("reference", "", row["reference"])]
        answers += [("full model", "", full), ("target", f"agreement {row['agreement']:.2f}", _marked(full, other))]
        samples.append(Sample(str(row["sequence_id"]), answers, row.get("prompt") or ""))
    text = "Words of the target's answer that differ from the full model's are marked."
    return [Section("answers", "Answers side by side", [text], samples=samples)] if samples else []


def _marked(full: str, other: str) -> MarkedText:
    return MarkedText(differences(full, other))
