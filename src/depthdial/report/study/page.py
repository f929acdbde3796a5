"""The page of a study, or of a sweep's or a similarity run's own folder. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.report.kit.page import about_rows, page_title, write_page
from depthdial.report.study.folder import read_folder
from depthdial.report.study.sections import build_sections
from depthdial.report.study.verdict import KEEP, percent


def write_study_report(folder: Path | str, *, keep: float = KEEP) -> Path:
    """Draw the figures of a result folder and write `report.html`, which opens with the verdict.

    Reads what is there of sweep/rows.parquet (or rows.parquet), similarity/rows.parquet, routes.json, oracle.json,
    predictable.json, timing.json, controller_scores.json and study.json, and leaves out what is not.
    """
    files = read_folder(folder, keep)
    rows = files.sweep if files.sweep is not None else files.similarity
    about = about_rows(rows)
    about["model"] = about["model"].partition(" + ")[0].partition(", ")[0]  # an adapter's rows name it with the adapter
    settings = files.settings.get("sweep") or files.settings.get("similarity") or {}
    more = {"prompt_depth": settings.get("prompt_depth"), "verdict": files.verdict, "percent": percent}
    return write_page(files.path, "page", build_sections(files), page_title(about), **about, **more)
