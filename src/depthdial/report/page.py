"""One self-contained HTML page and the figures beside it, from the result files of a folder. Never runs a model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthdial.files import write_text
from depthdial.report.folder import ResultFolder, read_folder
from depthdial.report.parts import Picture, Section
from depthdial.report.sections import build_sections
from depthdial.report.style import save_figure


def write_report(folder: Path | str) -> Path:
    """Draw the figures of a result folder and write `report.html`; the same files give the same bytes.

    Reads what is there of sweep/rows.parquet (or rows.parquet), similarity/rows.parquet, routes.json, oracle.json and
    study.json, and says on the page what is not. The page needs no network: figures are embedded; `figures/` holds them
    as PNG (200 dpi) and SVG too.

    Returns:
        The path of the page.

    Raises:
        InputError: if there are no rows, a file is damaged, or the folder cannot be written.
    """
    files = read_folder(folder)
    sections = build_sections(files)
    pictures = {p.name: _save(p, files.path / "figures") for section in sections for p in section.pictures}
    return write_text(files.path / "report.html", _page(files, sections, pictures))


def _save(picture: Picture, folder: Path) -> str:
    """Write both kinds; the SVG as a data URI, which keeps the ids inside one figure apart from another's."""
    save_figure(picture.figure, folder / f"{picture.name}.png")
    svg = save_figure(picture.figure, folder / f"{picture.name}.svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"


def _page(files: ResultFolder, sections: Sequence[Section], pictures: dict[str, str]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("depthdial.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = files.sweep if files.sweep is not None else files.similarity
    about = {name: _only(rows, name) for name in ("model", "task", "split")}
    settings = files.settings.get("sweep") or files.settings.get("similarity") or {}
    return environment.get_template("page.html.jinja").render(
        **about,
        n_layers=_only(rows, "n_layers"),
        prompt_depth=settings.get("prompt_depth"),
        sections=sections,
        pictures=pictures,
    )


def _only(rows: Any, column: str) -> str:
    """The values of a provenance column, which are one unless rows were put together by hand."""
    values = rows.column(column).unique().to_pylist() if column in rows.column_names else []
    return ", ".join(str(value) for value in values if value not in (None, ""))
