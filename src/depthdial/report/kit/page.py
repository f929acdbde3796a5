"""One self-contained HTML page and the figures beside it, put together from sections."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.files import write_text
from depthdial.report.kit.parts import Picture, Section
from depthdial.report.kit.style import save_figure


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
