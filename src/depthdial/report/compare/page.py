"""The page of a comparison: answers of some depths to the same prompts, differences from the first marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.report.kit.differences import MarkedText, differences
from depthdial.report.kit.page import about_rows, page_title, write_page
from depthdial.report.kit.parts import Sample, Section, as_table, pairs_table
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import provenance_table
from depthdial.report.study.summary import RouteRows, gather
from depthdial.report.study.tables import headline
from depthdial.rows.store import load_rows

_MOST_SEQUENCES = 50


def write_compare_report(folder: Path | str) -> Path:
    """Write `report.html` and `tables/` of a comparison's folder, from study.json and rows.parquet.

    Raises:
        InputError: if the folder holds no comparison, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    told, rows = read_json(folder / "study.json", "comparison"), load_rows(folder)
    by_name = {route.name: route for route in gather(rows)}
    names = told.get("routes") if isinstance(told, Mapping) else None
    missing = next((name for name in names or [None] if name not in by_name), None)
    if not names or missing is not None:
        raise InputError(f"{folder / 'study.json'} names depths that the rows lack: run `depthdial compare` again.")
    routes = [by_name[name] for name in names]
    table = headline(rows)
    write_table(table, folder / "tables", "compare")
    settings = read_json(folder / "settings.json", "settings")
    provenance = pairs_table("Provenance of the rows", provenance_table(rows))
    sections = [
        Section("depths", "Depths", tables=[as_table("Every depth on the same prompts", table)]),
        _answers(routes),
        Section("provenance", "Provenance", tables=[provenance], is_folded=True),
    ]
    about = about_rows(rows)
    how = {"first": routes[0].name, "prompt_depth": settings.get("prompt_depth", ""), "n_layers": about["n_layers"]}
    return write_page(folder, "compare", sections, page_title(about, "compare"), **how)


def _answers(routes: Sequence[RouteRows]) -> Section:
    first, *others = routes
    (texts, prompts, references), samples = (_texts(first, name) for name in ("answer", "prompt", "reference")), []
    for sequence in list(texts)[:_MOST_SEQUENCES]:
        answers: list[Any] = [("reference", "", references[sequence])] if sequence in references else []
        answers.append((_name(first), _score(first, sequence), texts[sequence]))
        for route in others:
            text = _texts(route, "answer").get(sequence)
            if text is not None:
                marked = MarkedText(differences(texts[sequence], text))
                answers.append((_name(route), _score(route, sequence), marked))
        samples.append(Sample(str(sequence), answers, prompts.get(sequence, "")))
    left = f" {len(texts) - len(samples)} more sequences are in the rows." * (len(texts) > len(samples))
    text = f"Greedy answers; words that differ from those of {first.name} are marked.{left}"
    return Section("answers", "Answers side by side", [text], samples=samples)


def _texts(route: RouteRows, column: str) -> dict[Any, str]:
    return {sequence: text for sequence, text in route.by_sequence(column).items() if isinstance(text, str)}


def _name(route: RouteRows) -> str:
    return f"{route.name} ({route.cost_layers:g} of {route.n_layers} layers)"


def _score(route: RouteRows, sequence: Any) -> str:
    told = {"rouge_l": "ROUGE-L", "agreement": "agreement"}
    known = {label: route.by_sequence(column).get(sequence, math.nan) for column, label in told.items()}
    return ", ".join(f"{label} {value:.2f}" for label, value in known.items() if not math.isnan(value))
