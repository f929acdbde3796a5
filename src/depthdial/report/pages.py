"""The page of any result folder: what kind of folder it is, and which module writes its page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from depthdial.files import read_json
from depthdial.latency.model import BENCH_FILE
from depthdial.report.controller.scores import SCORES_FILE
from depthdial.report.study.verdict import KEEP
from depthdial.rows.gates import is_gates_study
from depthdial.rows.store import CERTIFICATES_FILE, CHECK_FILE

_KINDS = ("study", "search", "gates", "controller", "bench", "compare", "check", "certify", "eval")
PAGES = {kind: f"depthdial.report.{kind}.page" for kind in _KINDS}


def kind_of(folder: Path | str) -> str:
    """The kind that a folder's study.json names, or that its files are of: a study where nothing says otherwise."""
    folder = Path(folder)
    about = read_json(folder / "study.json", "study") if (folder / "study.json").exists() else None
    if isinstance(about, dict) and about.get("kind") in PAGES:
        return str(about["kind"])
    if about is None and (folder / SCORES_FILE).exists():
        return "controller"
    if about is None and (folder / CHECK_FILE).exists():
        return "check"
    if about is None and (folder / CERTIFICATES_FILE).exists():
        return "certify"
    if about is None and (folder / BENCH_FILE).exists() and not (folder / "rows.parquet").exists():
        return "bench"
    return "gates" if is_gates_study(folder) else "study"


def write_report(folder: Path | str, *, keep: float = KEEP) -> Path:
    """Draw the figures of a result folder and write `report.html`; the same files give the same bytes.

    The folder is one of a study, sweep, similarity run, search study, gates study, evaluated controller, bench, comparison,
    check, certification or evaluation.

    Args:
        keep: the share of the full model's quality that a study's verdict asks routes to keep.

    Returns:
        The path of the page.

    Raises:
        InputError: if there are no rows, a file is damaged, the folder cannot be written, or `keep` is no share.

    Example:
        >>> _ = dd.sweep(model, tokenizer, task=task, routes=["full", "uls:50%"], metrics=["agreement"], out=folder / "rows")
        >>> dd.write_report(folder / "rows").name
        'report.html'
    """
    kind = kind_of(folder)
    write = getattr(import_module(PAGES[kind]), f"write_{kind}_report")
    return write(folder, keep=keep) if kind == "study" else write(folder)
