"""The page of `depthdial certify`: the promise, what it was tested on, and the plan that was fixed before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.guarantee.plan import Certificate
from depthdial.report.certify.plot import draw_certificates
from depthdial.report.controller.tables import certificate_table
from depthdial.report.kit.page import write_page
from depthdial.report.kit.parts import Picture, Section, as_table, pairs_table
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import Cells, Column, finished, provenance_table, settings_table
from depthdial.rows.store import CERTIFICATES_FILE, load_rows

_COLUMNS = (
    Column("quality", decimals=3),
    Column("lost", "mean loss", 4),
    Column("bound", "loss at most, by itself", 4),
    Column("cost_percent", "layer-steps, %", 1),
    Column("certified_at", "certified at"),
)
_NOTE = (
    "Depths were tested in this order, each until the first that could not be certified. The bound of a single depth says "
    "which loss these rows could have certified, had it been asked for before: to plan the next certificate, on new rows."
)


def read_certificates(folder: Path | str) -> tuple[Certificate, ...]:
    """The certificates of a folder.

    Raises:
        InputError: if there are none, or the file is damaged.
    """
    path = Path(folder) / CERTIFICATES_FILE
    document = read_json(path, "certificates")
    kept = document.get("certificates") if isinstance(document, dict) else None
    if not isinstance(kept, list) or not kept:
        raise InputError(f"{path} holds no certificates: run `depthdial certify` again.")
    return tuple(map(Certificate.from_dict, kept))


def loss_table(certificates: Sequence[Certificate]) -> list[Cells]:
    """A row for each setting, in the order of the tests: quality, loss and bound on the calibration rows."""
    first, rows = certificates[0], []
    qualities = first.provenance.get("quality") or [None] * len(first.risks)
    for place, name in enumerate(first.plan.settings):
        at = [f"{one.plan.epsilon:g}" for one in certificates if place and (one.certified or 0) >= place]
        rows.append(
            {
                "depth": name,
                "quality": qualities[place],
                "lost": first.risks[place],
                "bound": first.upper_risks[place] if place else None,
                "cost_percent": 100 * first.costs[place],
                "certified_at": ", ".join(at) or None,
            }
        )
    return finished(rows, _COLUMNS)


def write_certify_report(folder: Path | str) -> Path:
    """Write `report.html`, `tables/` and `figures/` of a certification's folder, from certificates.json and its rows.

    Raises:
        InputError: if the folder holds no certificates, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    certificates, rows = read_certificates(folder), load_rows(folder)
    first = certificates[0]
    losses, promised = loss_table(certificates), certificate_table(certificates)
    write_table(losses, folder / "tables", "losses")
    write_table(promised, folder / "tables", "certificates")
    picture = Picture(
        "losses",
        draw_certificates(certificates),
        "From the mean loss on the calibration rows (dot; filled where certified) to the largest loss that they allow "
        "(bar). Vertical lines: the losses that were allowed.",
        f"A line for each of {len(losses) - 1} depths from its mean loss to its bound.",
    )
    tables = [
        as_table("Depths in the order of the tests", losses),
        as_table("Certificates", promised),
    ]
    plan = pairs_table("Plan", settings_table({"digest": first.plan_digest, **first.plan.to_dict()}))
    sections = [
        Section("losses", "Losses and bounds", pictures=[picture], tables=tables, notes=[_NOTE]),
        Section(
            "provenance",
            "Plan and provenance",
            tables=[plan, pairs_table("Provenance of the rows", provenance_table(rows))],
            is_folded=True,
        ),
    ]
    about = first.plan.about
    how = {"statements": [one.statement for one in certificates], "n_rows": first.n_rows, "task": about.get("task", "")}
    return write_page(folder, "certify", sections, f"Depthdial certificate: {about.get('name', '')}", **how)
