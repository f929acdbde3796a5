"""One run of the reproduction: its settings, its sequences, and where everything lies.

What is committed lies in the folder itself; weights, checkpoints and unfinished rows lie in its `work` folder.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import depthdial as dd
from depthdial.data.tasks import Task
from depthdial.errors import InputError
from depthdial.files import claim, read_json
from depthdial.hf.adapter import CARD_FILE
from depthdial.hf.architectures import count_layers
from depthdial.train.artefact import RECORD_FILE
from reproduction.folder import ABOUT, ROWS, UNTOUCHED, RunFolder, Subject
from reproduction.settings import Settings


def is_finished(folder: Path) -> bool:
    """Whether a training has left everything."""
    return (folder / CARD_FILE).exists() and (folder / RECORD_FILE).exists()


@dataclass(frozen=True)
class Experiment(RunFolder):
    """Everything that the steps share.

    Attributes:
        train, test: sequences to learn from and to measure on.
    """

    train: Task
    test: Task

    def folder_of(self, subject: Subject) -> Path:
        """Its weights."""
        return self.out / "work" / "weights" / subject.name

    def answers_of(self, subject: Subject) -> Path:
        return self.out / "work" / "answers" / subject.name

    def samples_of(self, subject: Subject) -> Path:
        return self.out / "work" / "samples" / subject.name

    def has_answered(self, subject: Subject) -> bool:
        """Whether all its greedy and sampled answers are there."""
        return all((folder / ROWS).exists() for folder in (self.answers_of(subject), self.samples_of(subject)))

    def load(self, subject: Subject) -> tuple[Any, Any]:
        """The subject's model and tokenizer.

        Raises:
            InputError: if it is not trained yet.
        """
        if subject.kind == UNTOUCHED:
            return dd.load(self.settings.model, dtype=self.settings.dtype)
        folder = self.folder_of(subject)
        if not is_finished(folder):
            raise InputError(f"{subject.name} is not trained yet: run the same command without --only first.")
        return dd.load(folder, dtype=self.settings.dtype)

    def label(self, subject: Subject) -> str:
        """What rows call the subject's model: a name that is the same on every machine."""
        return self.settings.model if subject.kind == UNTOUCHED else f"{self.settings.model} ({subject.name})"


def open_experiment(settings: Settings, data: Path | None, out: Path) -> Experiment:
    """Read the data, check the settings against the model, and claim the folder.

    Raises:
        InputError: if data or model cannot be read, a cost does not fit the model, rows lack references, or the folder holds
            a run with other settings.
    """
    source = settings.task if data is None else data
    train = _sequences(source, "train", settings.train_rows, settings)
    test = _sequences(source, "test", settings.test_rows, settings)
    path = out / ABOUT
    known = read_json(path, "run") if path.exists() else None
    # Loading a model only to count its layers takes long: a run that goes on has counted them.
    n_layers = known.get("n_layers") if known else count_layers(dd.load(settings.model, dtype=settings.dtype)[0])
    costs = settings.costs_below(n_layers)
    about = {
        **asdict(settings),
        "n_layers": n_layers,
        "data": {part.split: {"rows": len(part.examples), "fingerprint": part.fingerprint} for part in (train, test)},
    }
    claim(path, about, "run")
    return Experiment(settings, out, n_layers, costs, train, test)


def say(text: str) -> None:
    """A line about where the run is."""
    print(text, file=sys.stderr, flush=True)


def _sequences(source: str | Path, split: str, limit: int | None, settings: Settings) -> Task:
    found = dd.task(
        source,
        split=split,
        limit=limit,
        seed=settings.seed,
        template=settings.template,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_response_tokens=settings.max_response_tokens,
    )
    if not found.has_references:
        raise InputError(f"The {split} split of {found.origin} has rows without a reference: give one for every row.")
    return found
