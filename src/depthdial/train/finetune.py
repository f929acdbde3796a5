"""Fine-tuning for depth: a specialist for one route, or one elastic set of weights for a family of routes.

Specialists are the paper's T and T_ULS,c (arXiv 2410.20022, section 4): the route runs on response tokens, what it skips is
frozen. Elastic weights are this project's own: every step runs several routes of a family, and each learns what the
untouched full model would say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.families import RouteFamily
from depthdial.files import claim, read_json
from depthdial.measure.batches import Runner
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity, unique_routes
from depthdial.measure.provenance import environment
from depthdial.measure.tasks import Task
from depthdial.models.architectures import unwrap
from depthdial.progress import progress_bar
from depthdial.routes import AnyRoute, Route
from depthdial.train.artefact import is_finished, save_artefact
from depthdial.train.compute import training_flops
from depthdial.train.objective import Objective
from depthdial.train.routed import RoutedModel, refuse_checkpointing
from depthdial.train.rows import TrainingRow, check_answers, training_rows
from depthdial.train.schedule import Schedule, make_schedule
from depthdial.train.settings import FinetuneSettings
from depthdial.train.student import student
from depthdial.train.trainer import DepthTrainer, ProgressSteps, last_checkpoint

# TrainingArguments that the schedule and the settings decide; the others are the user's.
_OWN_ARGUMENTS = frozenset(
    (
        *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "weight_decay", "max_grad_norm", "seed", "data_seed", "remove_unused_columns", "disable_tqdm"),
        *("train_sampling_strategy", "gradient_checkpointing", "resume_from_checkpoint", "save_steps", "save_strategy"),
        *("eval_strategy", "dataloader_drop_last", "auto_find_batch_size", "label_smoothing_factor", "use_cpu"),
    )
)


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run.

    Attributes:
        folder: what `dd.load` takes: as `adapter=` where an adapter was trained, as the model itself otherwise.
        record: JSON-ready: settings, tokens by route, steps, seconds, FLOPs, loss by step, where it ran.
    """

    folder: Path
    record: Mapping[str, Any]


def finetune(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    routes: RouteFamily | AnyRoute | str | Sequence[AnyRoute | str],
    out: Path | str,
    settings: FinetuneSettings | None = None,
    name: str | None = None,
    in_place: bool = False,
    trainer_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> FinetuneResult:
    """Train a route, or one set of weights for several routes.

    Args:
        model: the full model, which is not changed unless `in_place`. For distillation it is the teacher.
        task: sequences to learn from; nothing that is measured later.
        routes: one route makes a specialist; a family or several routes one elastic set of weights.
        out: folder for the result, its record and the checkpoints; a stopped run goes on there, exactly.
        name: what the model was loaded by.
        in_place: with method `full` and without distillation, train the model itself and not a copy.
        trainer_options: further fields of transformers' TrainingArguments, such as report_to, fsdp, bf16.

    Raises:
        InputError: for bad settings, routes or rows, before anything trains; for a loss or weights that are not finite,
            and where a checkpoint cannot be written, with the last good checkpoint kept.
    """
    settings, folder = settings or FinetuneSettings(), Path(out)
    runner = Runner.of(model, tokenizer)
    chosen = _routes(routes, runner.n_layers)
    refuse_checkpointing(model, chosen, settings.prompt_depth)
    if in_place and (settings.method != "full" or settings.distill):
        raise InputError("in_place=True is for method='full' without distillation: an adapter or a teacher needs the model.")
    identity = ModelIdentity.of(model, name)
    _claim(folder, settings, identity, chosen, task)
    if is_finished(folder):
        return FinetuneResult(folder, read_json(folder / "training.json", "training record"))
    rows = training_rows(
        task,
        tokenizer,
        runner,
        answers=check_answers(settings.answers),
        folder=folder / "answers",
        progress=progress and is_main(),
    )
    schedule = make_schedule(rows, chosen, settings, world_size=_world_size())
    torch.manual_seed(settings.seed)
    with student(model, chosen, settings, in_place=in_place) as trained:
        trainer = _trainer(model, trained, runner, chosen, settings, schedule, rows, folder, dict(trainer_options or {}))
        checkpoint = last_checkpoint(folder / "checkpoints")
        with progress_bar("training", schedule.n_steps, show=progress and is_main()) as advance:
            trainer.add_callback(ProgressSteps(advance))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        record = _record(model, trainer, settings, chosen, schedule, rows, task)
        trainer.save_model(str(folder / "checkpoints" / "final"))
        if trainer.is_world_process_zero():
            save_artefact(folder, tokenizer, identity, chosen, settings, record)
        trainer.accelerator.wait_for_everyone()
    return FinetuneResult(folder, record)


def _routes(routes: Any, n_layers: int) -> tuple[Route, ...]:
    """The routes as given, parsed and checked; random rules have no weights of their own to train."""
    given = routes.routes if isinstance(routes, RouteFamily) else [routes] if isinstance(routes, Route | str) else routes
    parsed = unique_routes(given, n_layers)
    rule = next((route.name for route in parsed if not isinstance(route, Route)), None)
    if rule is not None:
        raise InputError(f"{rule!r} is a rule, not one route: train a fixed route, such as uls:50%, or a family of them.")
    return parsed  # type: ignore[return-value]


def _trainer(
    model: Any,
    trained: Any,
    runner: Runner,
    routes: Sequence[Route],
    settings: FinetuneSettings,
    schedule: Schedule,
    rows: Sequence[TrainingRow],
    folder: Path,
    options: dict[str, Any],
) -> DepthTrainer:
    routed = RoutedModel(trained, prompt_depth=settings.prompt_depth, prompt_gradient=settings.prompt_gradient)
    objective = Objective(settings.distill, settings.temperature, settings.cross_entropy)
    teacher = unwrap(model) if settings.distill else None
    arguments = _arguments(runner, settings, schedule, folder / "checkpoints", len(routes) > 1, options)
    return DepthTrainer(routed, teacher, objective, routes, schedule, rows, runner.pad_token_id, arguments)


def _arguments(
    runner: Runner, settings: FinetuneSettings, schedule: Schedule, folder: Path, is_elastic: bool, options: dict[str, Any]
) -> Any:
    from transformers import TrainingArguments

    on_cpu = runner.device.type == "cpu"
    defaults = {
        "report_to": "none",
        "logging_steps": 10,
        "save_total_limit": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup_fraction * schedule.n_steps),
        "bf16": not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        # A pass of a family leaves the layers of the other routes alone.
        "ddp_find_unused_parameters": is_elastic,
    }
    owned = sorted(_OWN_ARGUMENTS & options.keys())
    if owned:
        raise InputError(f"{owned[0]} follows from the settings of the run: leave it out of the trainer's options.")
    try:
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=schedule.n_steps,
            per_device_train_batch_size=1,  # a pass of the schedule is a batch already
            gradient_accumulation_steps=schedule.per_step,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            disable_tqdm=True,
            learning_rate=settings.rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            save_strategy="steps",
            save_steps=min(settings.save_every, schedule.n_steps),
            use_cpu=on_cpu,
            **{**defaults, **options},
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"The trainer's options cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from error


def _claim(folder: Path, settings: FinetuneSettings, identity: ModelIdentity, routes: Sequence[Route], task: Task) -> None:
    """Write down what the run is, or refuse a folder that holds another one."""
    about = {
        **asdict(settings),
        "model": identity.name,
        "weights_hash": identity.weights_hash,
        "routes": [[route.name, str(route)] for route in routes],
        "task": task.name,
        "split": task.split,
        "data": task.fingerprint,
        "processes": _world_size(),
    }
    claim(folder / "finetune.json", about, "training run")


def _record(
    model: Any,
    trainer: DepthTrainer,
    settings: FinetuneSettings,
    routes: Sequence[Route],
    schedule: Schedule,
    rows: Sequence[TrainingRow],
    task: Task,
) -> dict[str, Any]:
    tokens = schedule.tokens_by_route(len(routes))
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "settings": asdict(replace(settings, learning_rate=settings.rate)),
        "data": {"task": task.name, "split": task.split, "rows": len(rows), "fingerprint": task.fingerprint},
        "steps": schedule.n_steps,
        "passes": len(schedule.passes),
        "response_tokens": sum(tokens),
        "response_tokens_by_route": {route.name: n for route, n in zip(routes, tokens, strict=True)},
        "distinct_response_tokens": sum(len(row.response_ids) for row in rows),
        "train_flops": training_flops(model_cost(model), schedule, rows, routes, settings),
        "train_sec": trainer.elapsed_sec,
        "processes": schedule.world_size,
        "history": history,
        **environment(),
    }


def _world_size() -> int:
    """Processes of this run, as torchrun and accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that speaks and writes; there is one in every run."""
    return os.environ.get("RANK", "0") == "0"
