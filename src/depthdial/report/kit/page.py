"""One self-contained HTML page and the figures beside it, from the result files of a folder. Never runs a model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.files import write_text
from depthdial.report.kit.parts import Picture, Section
from depthdial.report.kit.style import save_figure
from depthdial.report.study.folder import read_folder
from depthdial.report.study.sections import Contents, build_sections
from depthdial.report.study.verdict import KEEP, NAMES, percent


def write_report(folder: Path | str, *, keep: float = KEEP) -> Path:
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


def write_page(folder: Path, template: str, sections: Sequence[Section], title: str, **variables: Any) -> Path:
    """Save the sections' pictures in `figures/` and put everything into `report.html`.

    Args:
        template: name of the one in `templates/` whose lead is printed; `variables` are what it needs.
    """
    pictures = {p.name: _save(p, folder / "figures") for section in sections for p in section.pictures}
    page = _environment().get_template(f"{template}.html.jinja")
    return write_text(folder / "report.html", page.render(title=title, sections=sections, pictures=pictures, **variables))


def page_title(about: Mapping[str, str], what: str = "report") -> str:
    return f"Depthdial {what}: {about['model']}" + (f" on {about['task']}" if about["task"] else "")


def only_value(rows: Any, column: str) -> str:
    """The values of a provenance column, which are one unless rows were put together by hand."""
    values = rows.column(column).unique().to_pylist() if column in rows.column_names else []
    return ", ".join(str(value) for value in values if value not in (None, ""))


def _save(picture: Picture, folder: Path) -> str:
    """Write both kinds; the SVG as a data URI, which keeps the ids inside one figure apart from another's."""
    save_figure(picture.figure, folder / f"{picture.name}.png")
    svg = save_figure(picture.figure, folder / f"{picture.name}.svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("depthdial.report.kit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
