"""The folder of a run, as it is committed: settings, rows and training records; read without a model and without data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from depthdial.checks import whole
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.rows.store import load_rows
from reproduction.settings import Settings, settings_of

ABOUT, ROWS, SAMPLES = "figure2.json", "rows.parquet", "samples.parquet"
UNTOUCHED, SPECIALIST, ELASTIC, ELASTIC_COMPUTE = "untouched", "specialist", "elastic", "elastic_compute"
# The column `weights` of the rows. T, the whole model fine-tuned, is the specialist of the full route.
KINDS = (UNTOUCHED, SPECIALIST, ELASTIC, ELASTIC_COMPUTE)
FULL = "full"


@dataclass(frozen=True)
class Subject:
    """Weights, and the routes that they answer on.

    Attributes:
        name: also of its folders.
        kind: one of KINDS.
        routes: their texts.
    """

    name: str
    kind: str
    routes: tuple[str, ...]


@dataclass(frozen=True)
class RunFolder:
    """Which weights and routes a run has, and where its results lie.

    Attributes:
        out: the folder of the run.
        costs: layers of the routes that skip something, cheapest first.
    """

    settings: Settings
    out: Path
    n_layers: int
    costs: tuple[int, ...]

    @property
    def routes(self) -> tuple[str, ...]:
        return (*(f"uls:{cost}" for cost in self.costs), FULL)

    @property
    def untouched(self) -> Subject:
        return Subject(UNTOUCHED, UNTOUCHED, self.routes)

    @property
    def whole(self) -> Subject:
        """T: the full model, fine-tuned; what the oracle has to match, and what everything else starts from."""
        return Subject("T", SPECIALIST, (FULL,))

    @property
    def specialists(self) -> tuple[Subject, ...]:
        return tuple(Subject(f"uls-{cost}", SPECIALIST, (f"uls:{cost}",)) for cost in self.costs)

    @property
    def elastic(self) -> Subject:
        """One set of weights for all routes, with as many response tokens for each as a specialist has."""
        return Subject(ELASTIC, ELASTIC, self.routes)

    @property
    def elastic_compute(self) -> Subject:
        """The same with as many FLOPs as all specialists together."""
        return Subject(ELASTIC_COMPUTE, ELASTIC_COMPUTE, self.routes)

    @property
    def trained(self) -> tuple[Subject, ...]:
        return (self.whole, *self.specialists, self.elastic, self.elastic_compute)

    def record_of(self, subject: Subject) -> Path:
        """How it was trained."""
        return self.out / "training" / f"{subject.name}.json"

    def training_record(self, subject: Subject) -> dict[str, Any]:
        """How a subject was trained.

        Raises:
            InputError: if it is not trained yet.
        """
        path = self.record_of(subject)
        if not path.exists():
            raise InputError(f"{subject.name} is not trained yet: run the same command without --only first.")
        return read_json(path, "training record")

    def rows(self, name: str) -> dict[str, pa.Table]:
        """The rows of one of the merged tables, by kind of weights; kinds without rows are left out.

        Raises:
            InputError: if there are none yet, none of the specialists, or a kind lacks a route.
        """
        path = self.out / name
        if not path.exists():
            raise InputError(f"There is no {path} yet: run the same command without --only first.")
        table = load_rows(path)
        tables = {kind: table.filter(pc.field("weights") == kind) for kind in KINDS}
        tables = {kind: rows for kind, rows in tables.items() if len(rows)}
        if SPECIALIST not in tables:
            raise InputError(f"{path} has no rows of the specialists: run the same command without --only first.")
        for kind, rows in tables.items():
            lacking = set(self.routes) - set(rows["route"].to_pylist())
            if lacking:
                raise InputError(
                    f"The rows of {kind} in {path} lack {', '.join(sorted(lacking))}: run the missing steps first."
                )
        return tables


def read_folder(out: Path) -> RunFolder:
    """A run's folder as it stands, whose settings are those that it was made with.

    Raises:
        InputError: if there is no run in it.
    """
    path = out / ABOUT
    if not path.exists():
        raise InputError(f"There is no {path}: give the folder of a run, which holds its settings and rows.")
    about = read_json(path, "run")
    if not isinstance(about, dict) or "data" not in about:
        raise InputError(f"{path} does not say which data a run had: give the folder of a run, as it was written.")
    n_layers = whole("n_layers", about.get("n_layers"), 1)
    settings = settings_of({name: value for name, value in about.items() if name not in ("n_layers", "data")}, str(path))
    return RunFolder(settings, out, n_layers, settings.costs_below(n_layers))
