"""Setup around a trainer: transformers' arguments, resumption from a checkpoint, the record."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthdial.data.leakage import prompt_hashes
from depthdial.data.tasks import Task, as_task
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import claim, read_json, write_json
from depthdial.hf.trained import trained_on
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity
from depthdial.progress import progress_bar
from depthdial.provenance import environment
from depthdial.routes import Route
from depthdial.train.artefact import (
    CHECKPOINTS,
    FINAL,
    RECORD_FILE,
    bring_weights,
    leave_latest,
    remove_checkpoints,
)
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow, training_rows
from depthdial.train.schedule import FlopsCount, Schedule, make_schedule
from depthdial.train.timing import LEDGER_FILE, AnswersInTime, Clock, TimeBudget
from depthdial.train.trainer import (
    CarefulTrainer,
    LeaveLatest,
    ProgressSteps,
    ScheduledPasses,
    last_checkpoint,
    refusing_full_disk,
)

# TrainingArguments that would change the schedule, beside those that follow from it; the others are the user's.
_REFUSED_ARGUMENTS = (
    *("num_train_epochs", "data_seed", "gradient_checkpointing", "resume_from_checkpoint", "eval_strategy"),
    *("dataloader_drop_last", "auto_find_batch_size", "label_smoothing_factor"),
)


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        folder: what `dd.load` takes: as `adapter=` where an adapter was trained, as the model itself otherwise. Of gates
            what `dd.load_gates` takes.
        record: JSON-ready: settings, tokens, steps, seconds, FLOPs, what each log entry says, where it ran; of gates also
            how often each layer ran in the end.
    """

    folder: Path
    record: Mapping[str, Any]


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
        trainer: of what trains, the passes and TrainingArguments.
        told: what the record says beside what every record says, of the trainer and the schedule.
        finish: writes what makes the folder whole, of the folder, what trained and the record.
        complete: the same for the folder of a checkpoint's weights, of folder and record; None where weights alone are of no
            use.
        about: what else the run is known by, JSON-ready.
        seen: hashes of the prompts that its weights were trained on before.
        usual: TrainingArguments where the user names no others.
    """

    file: str
    card: str
    settings: Any
    run: FinetuneSettings
    routes: Sequence[Route]
    student: Callable[[], AbstractContextManager[Any]]
    trainer: Callable[[Any, ScheduledPasses, Any], CarefulTrainer]
    told: Callable[[Any, Schedule], dict[str, Any]]
    finish: Callable[[Path, Any, Mapping[str, Any]], object]
    complete: Callable[[Path, Mapping[str, Any]], object] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    usual: Mapping[str, Any] = field(default_factory=dict)


def run_training(
    job: Job,
    session: Session,
    tokenizer: Any,
    *,
    task: Task,
    out: Path | str,
    identity: ModelIdentity,
    options: Mapping[str, Any] | None,
    progress: bool,
    clock: Clock,
) -> TrainingResult:
    """Train, or go on, or find what is finished in `out`.

    Args:
        options: further fields of TrainingArguments.
        clock: seconds since the command began, for a time budget.
    """
    folder, run = Path(out), job.run
    task = as_task(task, held_out=True)
    checkpoint, is_finished = last_checkpoint(folder / CHECKPOINTS), is_whole(folder, job)
    if checkpoint is None and not is_finished:
        _forget_minutes(folder / job.file, run)
    claim_run(folder, job.file, job.settings, identity, task, **job.about)
    if is_finished:
        if is_main():
            remove_checkpoints(folder)
        return TrainingResult(folder, read_json(folder / RECORD_FILE, "training record"))
    progress = progress and is_main()
    about_rows: dict[str, Any] = {"answers": run.answers, "folder": folder / "answers", "progress": progress}
    rows = training_rows(task, tokenizer, session, **about_rows, check=AnswersInTime(run, clock))
    schedule = make_schedule(rows, job.routes, run, world_size=world_size())
    passes = ScheduledPasses(schedule.passes, rows, session.pad_token_id)
    ledger = folder / CHECKPOINTS / LEDGER_FILE
    timing: dict[str, Any] = {"clock": clock, "ledger": ledger, "resumes": checkpoint is not None, "writes": is_main()}
    budget = TimeBudget.of(run, schedule.n_steps, **timing)
    flops = FlopsCount(model_cost(session.given), rows, job.routes, run)
    with own_chance(run.seed), job.student() as trained:
        arguments = training_arguments(session, run, schedule, folder, {**job.usual, **(options or {})})
        trainer = job.trainer(trained, passes, arguments)

        def record(ended_by: str | None = None) -> dict[str, Any]:
            return _record(job, session, task, rows, schedule, trainer, flops, ended_by)

        def write(into: Path, told: Mapping[str, Any]) -> None:
            if run.method == "full":
                tokenizer.save_pretrained(into)
            write_json(into / RECORD_FILE, told)

        if (finish_checkpoint := job.complete) is not None:

            def complete(into: Path) -> None:
                told = record("checkpoint")
                write(into, told)
                finish_checkpoint(into, told)

            leave = functools.partial(leave_latest, folder, adapter_dtype=run.weights_dtype, complete=complete)
            trainer.add_callback(LeaveLatest(leave))
        run_trainer(trainer, checkpoint, schedule, job.routes, budget=budget, progress=progress)
        if budget is not None and not budget.has_learned and trainer.state.global_step < schedule.n_steps:
            remove_checkpoints(folder)  # nothing was learned, and another budget may be given
            raise budget.too_short()
        told = record()
        with refusing_full_disk(trainer.state.global_step, str(folder)):
            trainer.save_model(str(folder / FINAL))
            if trainer.is_world_process_zero():
                bring_weights(folder / FINAL, folder, run.weights_dtype)
                write(folder, told)
                job.finish(folder, trained, told)  # makes the folder whole; until then the checkpoints are kept
        if trainer.is_world_process_zero():
            remove_checkpoints(folder)
        trainer.accelerator.wait_for_everyone()
    return TrainingResult(folder, told)


def _record(
    job: Job,
    session: Session,
    task: Task,
    rows: Sequence[TrainingRow],
    schedule: Schedule,
    trainer: CarefulTrainer,
    flops: FlopsCount,
    ended_by: str | None,
) -> dict[str, Any]:
    """The record of the steps that are done, JSON-ready."""
    # Where all weights of the model are trained on and saved, what it had seen stays seen.
    seen = trained_on(session.given).values() if job.run.method == "full" else ()
    done = schedule.first(trainer.state.global_step)
    data = {
        "task": task.name,
        "split": task.split,
        "rows": len(rows),
        "fingerprint": task.fingerprint,
        "prompts": sorted(job.seen.union(prompt_hashes(task), *seen)),
    }
    minutes = {} if trainer.budget is None else {"used_minutes": trainer.budget.used_sec / 60}
    return {
        "settings": asdict(job.settings.resolved),
        "data": data,
        "steps": done.n_steps,
        "scheduled_steps": schedule.n_steps,
        "ended_by": ended_by or ("steps" if done.n_steps == schedule.n_steps else "time"),
        **minutes,
        "passes": len(done.passes),
        "response_tokens": sum(one.n_tokens for one in done.passes),
        "distinct_response_tokens": sum(len(row.response_ids) for row in rows),
        "train_flops": flops.of(done),
        "train_sec": trainer.elapsed_sec,
        "processes": done.world_size,
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
        **environment(),
        **job.told(trainer, done),
    }


def is_whole(folder: Path, job: Job) -> bool:
    """Whether the run in a folder has ended."""
    return (folder / job.card).exists() and (folder / RECORD_FILE).exists()


def _forget_minutes(file: Path, run: FinetuneSettings) -> None:
    """Let a run that has no checkpoint yet, as one whose budget was too short, take another budget."""
    if not file.exists():
        return
    known = read_json(file, "training run")
    minutes = {name: getattr(run, name) for name in ("max_minutes", "save_minutes")}
    if is_main() and isinstance(known, dict) and any(known.get(name) != value for name, value in minutes.items()):
        write_json(file, {**known, **minutes})


def claim_run(folder: Path, file: str, settings: Any, identity: ModelIdentity, task: Task, **about: Any) -> None:
    """Write down in `file` what the run is, `about` among it, or refuse a folder that holds another one."""
    known = {
        **asdict(settings.resolved),
        "model": identity.name,
        "weights_hash": identity.weights_hash,
        **about,
        "task": task.name,
        "split": task.split,
        "data": task.fingerprint,
        "processes": world_size(),
    }
    claim(folder / file, known, "training run", today=functools.partial(_today, type(settings)))


def _today(kind: Any, old: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's file says in the fields of today's settings: older ones say `rank`, and of gates have all in one."""
    words = {"rank", "alpha"}.union(one.name for one in (*fields(kind), *fields(FinetuneSettings)))
    given = {name: value for name, value in old.items() if name in words}
    if "run" in given:
        given["run"] = FinetuneSettings(**given["run"])
    return {**{name: value for name, value in old.items() if name not in words}, **asdict(kind(**given).resolved)}


def training_arguments(
    session: Session,
    settings: FinetuneSettings,
    schedule: Schedule,
    folder: Path,
    options: Mapping[str, Any],
) -> Any:
    """TrainingArguments of a run in `folder`; InputError for `options` that are unknown, or that the settings decide."""
    from transformers import TrainingArguments

    on_cpu = session.device.type == "cpu"
    own = {
        "output_dir": str(folder / CHECKPOINTS),
        "max_steps": schedule.n_steps,
        "per_device_train_batch_size": 1,  # a pass of the schedule is a batch already
        "gradient_accumulation_steps": schedule.per_step,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "learning_rate": settings.rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "save_strategy": "no" if settings.counts_minutes else "steps",
        "save_steps": min(settings.save_every, schedule.n_steps),
        "use_cpu": on_cpu,
    }
    owned = sorted(options.keys() & {*own, *_REFUSED_ARGUMENTS})
    if owned:
        raise InputError(f"{owned[0]} follows from the settings of the run: leave it out of the trainer's options.")
    usual = {
        "report_to": "none",
        "logging_steps": 10,
        "save_total_limit": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup_fraction * schedule.n_steps),
        "bf16": not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    }
    try:
        return TrainingArguments(**own, **{**usual, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"The trainer's options cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from error


def run_trainer(
    trainer: CarefulTrainer,
    checkpoint: Path | None,
    schedule: Schedule,
    routes: Sequence[Route],
    *,
    budget: TimeBudget | None,
    progress: bool,
) -> None:
    """Train to the end, or until the budget is used up; from a checkpoint where there is one."""
    if budget is not None:
        trainer.keep_time(budget)
    if not trainer.has_time:
        if checkpoint is not None:
            trainer.stand_at(checkpoint)
        return
    with progress_bar("training", schedule.n_steps, show=progress) as advance:
        trainer.add_callback(ProgressSteps(trainer, schedule, routes, advance))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


@contextmanager
def own_chance(seed: int) -> Iterator[None]:
    """Inside, all chance comes from `seed`; afterwards everybody's generators are where they were.

    Trainer seeds Python's, numpy's and PyTorch's generators, which belong to whoever called.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def world_size() -> int:
    """Processes of this run, as torchrun and accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that speaks and writes; there is one in every run."""
    return os.environ.get("RANK", "0") == "0"
