"""The quality of an export as it will run, beside what studies measure, on the same rows and against the same full model.

A study runs the prompt at full depth. A saved folder of a route has no other layers, and so runs the prompt on the route
too: what is measured must be what ships.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.data.tasks import Task
from depthdial.errors import InputError
from depthdial.hf.prompts import both_prompt_depths
from depthdial.measure.references import KEPT_BYTES, Reference
from depthdial.measure.sweep import sweep
from depthdial.routes import Route
from depthdial.rows.store import load_study_rows
from depthdial.stats import serialize
from depthdial.stats.intervals import Interval, known_interval, mean_over_samples

METRICS = ("rouge_l", "agreement", "kl")
# Rows of the measurement, within the folder of an export.
ROWS = "measured"
FULL, STUDIED, SHIPPED = "full model", "route, prompt at full depth", "as exported, prompt on the route"


@dataclass(frozen=True)
class Scores:
    """Means over sequences, with 95% intervals.

    Attributes:
        what: was measured: `FULL`, `STUDIED`, `SHIPPED`, or a study's folder.
        layers: that a response token runs.
        values: by metric; of those that rows have.
    """

    what: str
    layers: int
    sequences: int
    values: Mapping[str, Interval]

    def record(self) -> dict[str, Any]:
        return serialize.dump(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Scores:
        values = {name: _interval(**one) for name, one in record["values"].items()}
        return cls(record["what"], record["layers"], record["sequences"], values)

    def cells(self) -> dict[str, Any]:
        """A row of a table."""
        return {"run": self.what, "layers": self.layers, **{name: self.values.get(name) for name in METRICS}}


@dataclass(frozen=True)
class Quality:
    """What was measured of an export.

    Attributes:
        task, split: of the rows.
        max_new_tokens: longest answer of those that ROUGE-L is of.
        scores: of the full model, of the route as studies run it, of the export as it runs, and of a study.
    """

    task: str
    split: str
    max_new_tokens: int
    scores: tuple[Scores, ...] = field(default_factory=tuple)

    def of(self, what: str) -> Scores | None:
        return next((one for one in self.scores if one.what == what), None)

    def record(self) -> dict[str, Any]:
        return serialize.dump(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Quality:
        scores = tuple(map(Scores.of_record, record["scores"]))
        return cls(record["task"], record["split"], record["max_new_tokens"], scores)

    @property
    def sentence(self) -> str:
        """What the prompt on the route costs, in one sentence."""
        studied, shipped, full = self.of(STUDIED), self.of(SHIPPED), self.of(FULL)
        if studied is None or shipped is None:
            return ""
        name = "rouge_l" if "rouge_l" in shipped.values and "rouge_l" in studied.values else "agreement"
        label = {"rouge_l": "ROUGE-L", "agreement": "agreement with the full model"}[name]
        ours, theirs = shipped.values[name], studied.values[name]
        whole = f", and the full model {full.values[name].mean:.3f}" if full is not None and name in full.values else ""
        return (
            f"As exported, prompts run on the route too: {label} is {ours.mean:.3f}, where the route with prompts at full "
            f"depth has {theirs.mean:.3f}{whole} (n = {shipped.sequences})."
        )


@dataclass(frozen=True)
class Measuring:
    """What an export is measured on.

    Attributes:
        task: rows that neither routes nor weights were made on.
        max_new_tokens: longest answer.
        study: folder of a sweep or study whose numbers of the route stand beside.
    """

    task: Task
    max_new_tokens: int = 64
    batch_size: int = 16
    study: Path | None = None
    allow_searched_rows: bool = False
    progress: bool = False


def measure(model: Any, shipped: Any, tokenizer: Any, route: Route, out: Path, how: Measuring) -> Quality:
    """Measure an export and the route that it was made of.

    Args:
        model: the full model, with its adapter if it has one; KL and agreement compare with it without.
        shipped: what was written, loaded again; None for what runs prompts at full depth, as studies do.
        out: folder of the rows; a stopped measurement goes on there.

    Raises:
        InputError: from `dd.sweep`, and for a study without this route.
    """
    known = None if how.study is None else study_scores(how.study, route)
    reference = Reference.of(model, tokenizer, keep_bytes=KEPT_BYTES)
    metrics = METRICS if how.task.any_reference else METRICS[1:]
    common: dict[str, Any] = {
        "task": how.task,
        "metrics": metrics,
        "max_new_tokens": how.max_new_tokens,
        "batch_size": how.batch_size,
        "reference": reference,
        "progress": how.progress,
        "allow_searched_rows": how.allow_searched_rows,
    }
    full = sweep(model, tokenizer, routes="full", out=out / "full", full_untouched=True, **common)
    scores = [_scores(full, FULL)]
    if not route.is_full:
        with both_prompt_depths():
            studied = sweep(model, tokenizer, routes=route, out=out / "study", **common)
        scores.append(_scores(studied, STUDIED))
    if shipped is not None:
        written = sweep(shipped, tokenizer, routes="full", out=out / "export", prompt_depth="route", **common)
        scores.append(_scores(written, SHIPPED))
    scores += [] if known is None else [known]
    return Quality(how.task.name, how.task.split, how.max_new_tokens, tuple(scores))


def study_scores(folder: Path, route: Route) -> Scores:
    """The numbers that a study's or a sweep's rows have of a route.

    Raises:
        InputError: if there are none.
    """
    rows = load_study_rows(folder)
    names = {
        name
        for name, layers, n in zip(*(rows[c].to_pylist() for c in ("route", "route_layers", "n_layers")), strict=True)
        if layers == str(route) and n == route.n_layers
    }
    if not names:
        raise InputError(
            f"{folder} has no rows of route {route.name!r} ({route}): give the folder of a study that measured it."
        )
    return _scores(rows, f"{folder.name}, as measured there", min(names))


def _interval(mean: float, low: float | None, high: float | None, n: int) -> Interval:
    return Interval(mean, math.nan if low is None else low, math.nan if high is None else high, n)


def _scores(rows: Any, what: str, name: str | None = None) -> Scores:
    chosen = [i for i, one in enumerate(rows["route"].to_pylist()) if name in (None, one)]
    rows = rows.take(chosen)
    values = dict(_intervals(rows))
    layers = round(float(np.mean(rows["layers_run"].to_pylist())))
    return Scores(what, layers, len(set(rows["sequence_id"].to_pylist())), values)


def _intervals(rows: Any) -> Iterator[tuple[str, Interval]]:
    names = [name for name in METRICS if name in rows.column_names]
    table = {name: rows[name].to_numpy() for name in ("sequence_id", "route")}
    means = mean_over_samples({**table, **{name: rows[name].to_numpy().astype(float) for name in names}})
    for name in names:
        found = known_interval(means[name])
        if found is not None:
            yield name, found
