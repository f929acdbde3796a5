"""The file of an evaluated controller: its scores by metric and cost, its certificates, what it costs itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from depthdial.control.judge.headroom import ControllerScore
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.guarantee.plan import Certificate
from depthdial.stats.serialize import dump

SCORES_FILE = "controller_scores.json"


@dataclass(frozen=True)
class ControllerScores:
    """What one evaluation of a controller found.

    Attributes:
        scores: by metric, or "metric by cost" where something else than layers is spent; the first is the primary one.
        certificates: what was certified, in the order in which it was asked.
        overhead: what the controller itself costs, as names and plain values.
        controller: what it is and how it was fitted and tested, as names and plain values.
    """

    scores: Mapping[str, ControllerScore]
    certificates: tuple[Certificate, ...] = ()
    overhead: Mapping[str, Any] = field(default_factory=dict)
    controller: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON; `from_dict` restores the scores."""
        return dump(self) | {"certificates": [certificate.to_dict() for certificate in self.certificates]}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ControllerScores:
        """The scores that `to_dict` wrote; only `scores` must be there, one at least. InputError otherwise."""
        scores = document.get("scores")
        if set(document) - {one.name for one in fields(cls)} or not isinstance(scores, Mapping) or not scores:
            raise InputError("It holds no scores of a controller: evaluate the controller again.")
        restored = {name: ControllerScore.from_dict(score) for name, score in scores.items()}
        certificates = tuple(map(Certificate.from_dict, document.get("certificates") or ()))
        return cls(**{**document, "scores": restored, "certificates": certificates})


def read_scores(folder: Path | str) -> ControllerScores | None:
    """The scores in a folder; None without their file, InputError if it is damaged."""
    path = Path(folder) / SCORES_FILE
    if not path.exists():
        return None
    document = read_json(path, "controller scores")
    try:
        return ControllerScores.from_dict(document if isinstance(document, dict) else {})
    except InputError as error:
        raise InputError(f"{path} is damaged: run `depthdial controller evaluate` again. ({error})") from error


def keep_scores(folder: Path | str, scores: ControllerScores) -> Path:
    """Write the scores into a folder, by atomic rename; the path of the file."""
    return write_json(Path(folder) / SCORES_FILE, scores.to_dict())
