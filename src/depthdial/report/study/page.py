"""The page of a study, or of a sweep's or a similarity run's own folder. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.report.kit.page import only_value, page_title, write_page
from depthdial.report.study.folder import read_folder
from depthdial.report.study.sections import Contents, build_sections
from depthdial.report.study.verdict import KEEP, NAMES, percent


def write_study_report(folder: Path | str, *, keep: float = KEEP) -> Path:
    """Draw the figures of a result folder and write `report.html`; the same files give the same bytes.

    Reads what is there of sweep/rows.parquet (or rows.parquet), similarity/rows.parquet, routes.json, oracle.json,
    controller_scores.json and study.json, and leaves out what is not. The page opens with the verdict, and needs no network:
    figures are embedded; `figures/` holds them as PNG (200 dpi) and SVG too.

    Args:
        keep: the share of the full model's quality that the verdict asks routes to keep.

    Returns:
        The path of the page.

    Raises:
        InputError: if there are no rows, a file is damaged, the folder cannot be written, or `keep` is no share.
    """
    files = read_folder(folder)
    rows = files.sweep if files.sweep is not None else files.similarity
    about = {name: only_value(rows, name) for name in ("model", "task", "split", "n_layers")}
    about["model"] = about["model"].partition(" + ")[0].partition(", ")[0]  # an adapter's rows name it with the adapter
    settings = files.settings.get("sweep") or files.settings.get("similarity") or {}
    contents = Contents(files, keep)
    more = {**about, "prompt_depth": settings.get("prompt_depth"), "verdict": contents.verdict, "percent": percent}
    named = NAMES.get(contents.verdict.metric or "") if contents.verdict is not None else None
    more["metric_name"] = named
    return write_page(files.path, "page", build_sections(contents), page_title(about), **more)
