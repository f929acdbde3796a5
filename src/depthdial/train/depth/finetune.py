"""Fine-tuning for depth: a specialist for one route, or one elastic set of weights for a family of routes.

Specialists are the paper's T and T_ULS,c (arXiv 2410.20022, section 4): the route runs on response tokens, what it skips is
frozen. Elastic weights are this project's own: every step runs several routes of a family, and each learns what the
untouched full model would say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from depthdial.data.tasks import Task, as_task
from depthdial.engine.session import Runner
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity, Routes, unique_routes
from depthdial.routes import Route
from depthdial.train.artefact import is_finished, save_artefact
from depthdial.train.compute import training_flops
from depthdial.train.depth.routed import RoutedModel, refuse_checkpointing
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.depth.student import student
from depthdial.train.objective import Objective
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
from depthdial.train.trainer import DepthTrainer


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
    routes: Routes,
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
    task = as_task(task, held_out=True)
    claim_run(folder, "finetune.json", settings, identity, task, routes=[[route.name, str(route)] for route in chosen])
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
    schedule = make_schedule(rows, chosen, settings, world_size=world_size())
    with own_chance(settings.seed), student(model, chosen, settings, in_place=in_place) as trained:
        trainer = _trainer(model, trained, runner, chosen, settings, schedule, rows, folder, dict(trainer_options or {}))
        run_trainer(trainer, folder, schedule, progress=progress)
        record = _record(model, trainer, settings, chosen, schedule, rows, task)
        trainer.save_model(str(folder / FINAL))
        if trainer.is_world_process_zero():
            save_artefact(folder, tokenizer, identity, chosen, settings, record)
        trainer.accelerator.wait_for_everyone()
    return FinetuneResult(folder, record)


def _routes(routes: Any, n_layers: int) -> tuple[Route, ...]:
    """The routes as given, parsed and checked; random rules have no weights of their own to train."""
    parsed = unique_routes(routes, n_layers)
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
    teacher = runner.model if settings.distill else None
    # A pass of a family leaves the layers of the other routes alone.
    unused = len(routes) > 1
    arguments = training_arguments(runner, settings, schedule, folder, options, ddp_find_unused_parameters=unused)
    return DepthTrainer(routed, teacher, objective, routes, schedule, rows, runner.pad_token_id, arguments)


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
    flops = training_flops(model_cost(model), schedule, rows, routes, settings)
    return {
        "settings": asdict(replace(settings, learning_rate=settings.rate)),
        **run_record(trainer, schedule, rows, task, flops, model if settings.method == "full" else None),
        "response_tokens_by_route": {route.name: n for route, n in zip(routes, tokens, strict=True)},
    }
