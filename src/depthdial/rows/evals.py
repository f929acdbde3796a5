"""Results of an evaluation: the scores of one task at one depth are one file, in a folder that a stopped run goes on from.

A folder belongs to one model and one set of settings, in its study.json; its tasks and depths may grow. Needs no model, so
that a report can read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import Document, claim, read_json

KIND = "eval"
FULL = "full"
_UNIT = Document("depthdial-eval", 1, "evaluation", "delete it and evaluate again")
_NO_FILTER = "none"


@dataclass(frozen=True)
class EvalScore:
    """One metric of a task at one depth.

    Attributes:
        metric: as the harness calls it.
        filter: of the answers, as the harness calls it; `none` for none.
        stderr: the standard error of `value` over documents; None where there is none to tell (a single document).
        higher_is_better: None where the task does not say.
        each: (n_documents,) the part of each document, whose mean is `value`: so two depths can be compared document by
            document. Empty where the metric is no such mean.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    each: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The metric, with its filter where the task has one."""
        return self.metric if self.filter == _NO_FILTER else f"{self.metric}, {self.filter}"


@dataclass(frozen=True)
class EvalUnit:
    """The scores of one task at one depth.

    Attributes:
        route: what ran, as text: layers, or what decides about them.
        layers: layers that ran for a scored or generated token, in the mean.
        prompt_depth: what the contexts ran: `route`, `full`, or both with a comma.
        n_documents: that were scored.
        n_shot: examples in every context; None where the tasks of a group differ.
        task_version: of the task.
        chance: accuracy of guessing, of a task with choices; None of others.
        one_token_share: share of the scored continuations that are a single token; None where none was scored.
        sec: measured seconds of the evaluation.
        provenance: versions, hardware and commit.
    """

    task: str
    depth: str
    route: str
    layers: float
    n_layers: int
    prompt_depth: str
    n_documents: int
    n_shot: int | None
    task_version: str
    scores: tuple[EvalScore, ...]
    chance: float | None
    one_token_share: float | None
    sec: float
    provenance: Mapping[str, str]

    @property
    def is_full(self) -> bool:
        """Whether this is the full model, by which others are judged."""
        return self.depth == FULL

    def score(self, metric: str | None = None) -> EvalScore:
        """The score of a metric by its `name`; None for the task's first one.

        Raises:
            InputError: for a metric that the task does not have.
        """
        found = [one for one in self.scores if metric in (None, one.name, one.metric)]
        if not found:
            names = ", ".join(one.name for one in self.scores) or "none"
            raise InputError(f"The task {self.task!r} has no metric {metric!r}: its metrics are {names}.")
        return found[0]


@dataclass(frozen=True)
class EvalResults:
    """All scores of an evaluation.

    Attributes:
        settings: of the evaluation: model, weights, limit, prompt depth, the harness's version, ..
        units: by task, then from the most layers to the fewest.
        folder: where they are; None in memory.

    Example:
        >>> results = dd.evaluate(model, tokenizer, tasks="builtin_choice", depth=["full", "uls:50%"], limit=2)
        >>> results.tasks, results.depths
        (('builtin_choice',), ('full', 'uls:3'))
        >>> 0 <= results.unit("builtin_choice", "uls:3").score("acc").value <= 1
        True
    """

    settings: Mapping[str, Any]
    units: tuple[EvalUnit, ...]
    folder: Path | None = None

    @property
    def model(self) -> str:
        return str(self.settings.get("model", ""))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(unit.task for unit in self.units))

    @property
    def depths(self) -> tuple[str, ...]:
        """Names, from the most layers to the fewest."""
        layers: dict[str, list[float]] = {}
        for unit in self.units:
            layers.setdefault(unit.depth, []).append(unit.layers)
        return tuple(sorted(layers, key=lambda name: (name != FULL, -sum(layers[name]) / len(layers[name]), name)))

    def unit(self, task: str, depth: str) -> EvalUnit:
        """The scores of a task at a depth, by their names.

        Raises:
            InputError: if there are none.
        """
        found = self.find(task, depth)
        if found is None:
            raise InputError(f"Nothing was evaluated of {task!r} at {depth!r}: evaluate it first.")
        return found

    def find(self, task: str, depth: str) -> EvalUnit | None:
        """The same, or None."""
        return next((unit for unit in self.units if (unit.task, unit.depth) == (task, depth)), None)

    @classmethod
    def load(cls, folder: Path | str) -> EvalResults:
        """All finished units of a folder.

        Raises:
            InputError: if it holds no evaluation, or a damaged one.
        """
        folder = Path(folder)
        settings = read_json(folder / "study.json", "evaluation")
        if not isinstance(settings, dict) or settings.get("kind") != KIND:
            raise InputError(f"{folder} holds no evaluation: give the --out of depthdial eval.")
        units = [_UNIT.read(path, _unit) for path in sorted((folder / "units").glob("*.json"))]
        if not units:
            raise InputError(f"{folder} holds no finished task: run depthdial eval again.")
        return cls(settings, in_order(units), folder)


@dataclass(frozen=True)
class EvalFolder:
    """A folder of units, or memory where `folder` is None.

    Raises:
        InputError: on opening a folder that holds an evaluation with other settings.
    """

    settings: Mapping[str, Any]
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            claim(self.folder / "study.json", {"kind": KIND, **self.settings}, "evaluation")

    def read(self, name: str) -> EvalUnit | None:
        """A finished unit; None for one that is not there yet."""
        path = self._path(name)
        return _UNIT.read(path, _unit) if path is not None and path.exists() else None

    def write(self, name: str, unit: EvalUnit) -> None:
        """Keep a unit, by atomic rename."""
        path = self._path(name)
        if path is not None:
            _UNIT.write(path, asdict(unit))

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / "units" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.json"


def in_order(units: list[EvalUnit]) -> tuple[EvalUnit, ...]:
    """By task, the full model first, then from the most layers to the fewest."""
    return tuple(sorted(units, key=lambda unit: (unit.task, not unit.is_full, -unit.layers, unit.depth)))


def _unit(document: dict[str, Any]) -> EvalUnit:
    given = {field.name: document[field.name] for field in fields(EvalUnit)}
    scores = tuple(EvalScore(**{**one, "each": tuple(one["each"])}) for one in given["scores"])
    return EvalUnit(**{**given, "scores": scores})
