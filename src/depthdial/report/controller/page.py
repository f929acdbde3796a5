"""The page of an evaluated controller, from its scores alone. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.errors import InputError
from depthdial.report.controller.scores import SCORES_FILE, read_scores
from depthdial.report.controller.section import controller_section
from depthdial.report.controller.tables import certificate_table, controller_table
from depthdial.report.kit.page import page_title, write_page
from depthdial.report.kit.parts import file_name
from depthdial.report.kit.table_files import write_table


def write_controller_report(folder: Path | str) -> Path:
    """Write `report.html`, `figures/` and `tables/` (Markdown and CSV) from a folder's controller_scores.json.

    The same file gives the same bytes.

    Raises:
        InputError: if the folder holds no scores, they are damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    scores = read_scores(folder)
    if scores is None:
        raise InputError(f"{folder} holds no {SCORES_FILE}: run `depthdial controller evaluate` first.")
    tables = folder / "tables"
    for name, score in scores.scores.items():
        write_table(controller_table(score), tables, f"controller-{file_name(name)}")
        write_table(controller_table(score, -1), tables, f"controller-{file_name(name)}-mean")
    if scores.certificates:
        write_table(certificate_table(scores.certificates), tables, "certificates")
    about = {name: str(scores.controller.get(name) or "") for name in ("model", "task")}
    about["model"] = about["model"] or "a model"
    return write_page(folder, "controller", [controller_section(scores)], page_title(about, "controller"), **about)
