"""What a result folder holds, read once: a study's, a sweep's own, or a similarity run's own. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.oracles.oracle import OracleCurve
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.controller.scores import ControllerScores, read_scores
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_rows, load_study_rows

_Curve = TypeVar("_Curve", OracleCurve, PredictableCurve)


@dataclass(frozen=True)
class ResultFolder:
    """The files of a folder; None or empty for what is not there, of rows at least one kind is.

    Attributes:
        sweep, similarity: rows, as pyarrow tables.
        family: the searched routes.
        curves: oracles by name: the metric, and what is spent where that is not layers.
        predictable: predictable oracles by the same names, of rows with several sampled answers.
        settings: by what they are of (`study`, `sweep`, `similarity`).
        controller: the scores of an evaluated controller.
        timing: times measured apart from quality, route by route in turns.
    """

    path: Path
    sweep: Any = None
    similarity: Any = None
    family: RouteFamily | None = None
    curves: Mapping[str, OracleCurve] = field(default_factory=dict)
    predictable: Mapping[str, PredictableCurve] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    controller: ControllerScores | None = None
    timing: Mapping[str, Any] | None = None


def read_folder(folder: Path | str) -> ResultFolder:
    """Read DIR/sweep (and DIR/elastic), DIR/similarity (or rows in DIR itself), and what is beside them as JSON.

    Raises:
        InputError: if the folder holds no rows, or one of its files is damaged.
    """
    path = Path(folder)
    if path.is_file():
        raise InputError(f"{path} is a file: give the --out folder of a sweep or a study.")
    rows: dict[str, Any] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for kind, place in (("sweep", path / "sweep"), ("similarity", path / "similarity"), ("", path)):
        if not (place / "rows.parquet").exists() or (not kind and "sweep" in rows):
            continue
        table = load_study_rows(path) if kind == "sweep" else load_rows(place)
        kind = _kind(table, place)
        if table.num_rows == 0:
            raise InputError(
                f"{place / 'rows.parquet'} holds no row: run the measurement again, with at least one sequence."
            )
        rows.setdefault(kind, table)
        settings.setdefault(kind, _read(place / "settings.json", "settings"))
    if not rows:
        load_rows(path)  # says that there are none, and what to do
    return ResultFolder(
        path,
        rows.get("sweep"),
        rows.get("similarity"),
        RouteFamily.load(path / "routes.json") if (path / "routes.json").exists() else None,
        _curves(path / "oracle.json", OracleCurve),
        _curves(path / "predictable.json", PredictableCurve),
        {name: value for name, value in {"study": _read(path / "study.json", "study"), **settings}.items() if value},
        read_scores(path),
        _read(path / "timing.json", "timing") or None,
    )


def _kind(table: Any, place: Path) -> str:
    names = set(table.column_names)
    if "route" not in names or not {"cosine_final", "rouge_l", "agreement", "kl", "nll"} & names:
        raise InputError(f"{place / 'rows.parquet'} holds no result rows: give the --out folder of a sweep or a study.")
    return "similarity" if "cosine_final" in names else "sweep"


def _read(path: Path, what: str) -> Mapping[str, Any]:
    document = read_json(path, what) if path.exists() else {}
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no {what}: delete it and run again.")
    return document


def _curves(path: Path, kind: type[_Curve]) -> dict[str, _Curve]:
    curves = {}
    for name, stored in _read(path, "oracle").items():
        try:
            curves[name] = kind.from_dict(stored)
        except InputError as error:
            raise InputError(f"{path} is damaged at {name!r}: run `depthdial oracle` again.") from error
    return curves
