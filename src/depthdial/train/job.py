"""The one way a training runs, from the claim of its folder to what it leaves; a `Job` says what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from depthdial.data.tasks import Task, as_task
from depthdial.engine.session import Runner
from depthdial.files import read_json
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from depthdial.train.artefact import RECORD_FILE, is_finished, save_artefact
from depthdial.train.compute import training_flops
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow, check_answers, training_rows
from depthdial.train.running import (
    FINAL,
    claim_run,
    is_main,
    own_chance,
    run_record,
    run_trainer,
    training_arguments,
    world_size,
)
from depthdial.train.schedule import Schedule, make_schedule
from depthdial.train.trainer import CarefulTrainer


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        file: what the run is known by, within its folder.
        card: what it writes last.
        settings: FinetuneSettings, or GateSettings.
        run: the settings of the run.
        routes: of the schedule.
        student: what trains, as a context; afterwards the model is as it was.
        trainer: of what trains, the schedule, the rows and TrainingArguments.
        told: what the record says beside what every record says, of the trainer and the schedule.
        finish: writes what makes the folder whole, of the folder, what trained and the record.
        about: what else the run is known by, JSON-ready.
        usual: TrainingArguments where the user names no others.
    """

    file: str
    card: str
    settings: Any
    run: FinetuneSettings
    routes: Sequence[Route]
    student: Callable[[], AbstractContextManager[Any]]
    trainer: Callable[[Any, Schedule, Sequence[TrainingRow], Any], CarefulTrainer]
    told: Callable[[Any, Schedule], dict[str, Any]]
    finish: Callable[[Path, Any, Mapping[str, Any]], object]
    about: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)


def run_training(
    job: Job,
    runner: Runner,
    tokenizer: Any,
    *,
    task: Task,
    out: Path | str,
    identity: ModelIdentity,
    options: Mapping[str, Any] | None,
    progress: bool,
) -> Mapping[str, Any]:
    """Train, or go on, or find what is finished in `out`; the run's record.

    Args:
        options: further fields of transformers' TrainingArguments.
    """
    folder, run, model = Path(out), job.run, runner.given
    task = as_task(task, held_out=True)
    claim_run(folder, job.file, job.settings, identity, task, **job.about)
    if is_finished(folder, job.card):
        return read_json(folder / RECORD_FILE, "training record")
    rows = training_rows(
        task,
        tokenizer,
        runner,
        answers=check_answers(run.answers),
        folder=folder / "answers",
        progress=progress and is_main(),
    )
    schedule = make_schedule(rows, job.routes, run, world_size=world_size())
    with own_chance(run.seed), job.student() as trained:
        arguments = training_arguments(runner, run, schedule, folder, dict(options or {}), **job.usual)
        trainer = job.trainer(trained, schedule, rows, arguments)
        run_trainer(trainer, folder, schedule, progress=progress)
        flops = training_flops(model_cost(model), schedule, rows, job.routes, run)
        record = {
            "settings": asdict(job.settings.resolved),
            **run_record(trainer, schedule, rows, task, flops, model if run.method == "full" else None),
            **job.told(trainer, schedule),
        }
        trainer.save_model(str(folder / FINAL))
        if trainer.is_world_process_zero():
            save_artefact(folder, tokenizer, run, record, lambda there: job.finish(there, trained, record))
        trainer.accelerator.wait_for_everyone()
    return record
