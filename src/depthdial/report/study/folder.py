"""What a result folder holds, read once, and what follows from it: of a study, a sweep or a similarity run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.oracles.oracle import OracleCurve
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.controller.scores import ControllerScores, read_scores
from depthdial.report.study.summary import RouteRows, gather
from depthdial.report.study.time_plot import Timed, timed_routes
from depthdial.report.study.verdict import KEEP, Verdict, decide
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import count_samples, load_rows, load_study_rows

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
        keep: the share of quality that the verdict is asked for.
    """

    path: Path
    sweep: Any
    similarity: Any
    family: RouteFamily | None
    curves: Mapping[str, OracleCurve]
    predictable: Mapping[str, PredictableCurve]
    settings: Mapping[str, Mapping[str, Any]]
    controller: ControllerScores | None
    timing: Mapping[str, Any]
    keep: float

    @cached_property
    def routes(self) -> list[RouteRows]:
        return gather(self.sweep, self.timing) if self.sweep is not None else []

    @cached_property
    def compared(self) -> list[RouteRows]:
        return gather(self.similarity) if self.similarity is not None else []

    @cached_property
    def n_samples(self) -> int:
        """Sampled answers of each (sequence, route); 0 for greedy ones."""
        return count_samples(self.sweep) if self.sweep is not None else 0

    @cached_property
    def timed(self) -> list[Timed]:
        return timed_routes(self.routes)

    @cached_property
    def verdict(self) -> Verdict | None:
        """None without a sweep."""
        prompt_depth = self.settings.get("sweep", {}).get("prompt_depth")
        return decide(self.routes, self.keep, prompt_depth) if self.routes else None

    @property
    def made_by(self) -> Mapping[str, Any]:
        """How routes were searched; empty where none were."""
        return {} if self.family is None else self.family.made_by


def read_folder(folder: Path | str, keep: float = KEEP) -> ResultFolder:
    """Read DIR/sweep (and DIR/elastic), DIR/similarity (or rows in DIR itself), and what is beside them as JSON."""
    path = Path(folder)
    if path.is_file():
        raise InputError(f"{path} is a file: give the --out folder of a sweep or a study.")
    rows: dict[str, Any] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for kind, place in (("sweep", path / "sweep"), ("similarity", path / "similarity"), ("", path)):
        if not (place / "rows.parquet").exists() or (not kind and "sweep" in rows):
            continue
        table = load_study_rows(path) if kind == "sweep" else load_rows(place)
        columns = set(table.column_names)
        if "route" not in columns or not {"cosine_final", "rouge_l", "agreement", "kl", "nll"} & columns:
            raise InputError(f"{place / 'rows.parquet'} holds no result rows: give the --out folder of a sweep or a study.")
        kind = "similarity" if "cosine_final" in columns else "sweep"
        if table.num_rows == 0:
            raise InputError(f"{place / 'rows.parquet'} holds no row: run the measurement again, on one sequence at least.")
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
        _read(path / "timing.json", "timing"),
        keep,
    )


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
