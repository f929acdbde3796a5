"""One self-contained HTML page and the figures beside it, put together from sections."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.files import write_text
from depthdial.report.kit.parts import Picture, Section
from depthdial.report.kit.style import save_figure
from depthdial.report.kit.tables import distinct


def write_page(folder: Path, template: str, sections: Sequence[Section], title: str, **variables: Any) -> Path:
    """Save the sections' pictures in `figures/` and put everything into `report.html`.

    Args:
        template: name of the one in `templates/` whose lead is printed; `variables` are what it needs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("depthdial.report.kit"), undefined=StrictUndefined, **options)
    pictures = {p.name: _save(p, folder / "figures") for section in sections for p in section.pictures}
    page = environment.get_template(f"{template}.html.jinja")
    return write_text(folder / "report.html", page.render(title=title, sections=sections, pictures=pictures, **variables))


def about_rows(rows: pa.Table) -> dict[str, str]:
    """What a page says of its rows; each has one value unless rows were put together by hand."""
    return {name: ", ".join(distinct(rows, name)) for name in ("model", "task", "split", "n_layers")}


def page_title(about: Mapping[str, str], what: str = "report") -> str:
    return f"Depthdial {what}: {about['model']}" + (f" on {about['task']}" if about["task"] else "")


def _save(picture: Picture, folder: Path) -> str:
    """Write both kinds; the SVG as a data URI, which keeps the ids inside one figure apart from another's."""
    save_figure(picture.figure, folder / f"{picture.name}.png")
    svg = save_figure(picture.figure, folder / f"{picture.name}.svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"
