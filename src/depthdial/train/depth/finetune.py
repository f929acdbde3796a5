"""Fine-tuning for depth: a specialist for one route, or one elastic set of weights for a family of routes.

Specialists are the paper's T and T_ULS,c (arXiv 2410.20022, section 4): the route runs on response tokens, what it skips is
frozen. Elastic weights are this project's own: every step runs several routes of a family, and each learns what the
untouched full model would say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.data.tasks import Task
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.adapter import CARD_FILE
from depthdial.hf.prompts import warn_if_prompts_differ
from depthdial.measure.plan import ModelIdentity, Routes, unique_routes
from depthdial.routes import Route
from depthdial.train.artefact import save_card
from depthdial.train.depth.routed import RoutedModel, refuse_checkpointing
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.depth.start import Start
from depthdial.train.depth.student import refuse_adapted, student
from depthdial.train.running import Job, TrainingResult, own_chance, run_training
from depthdial.train.schedule import Schedule
from depthdial.train.timing import Clock, since_now
from depthdial.train.trainer import DepthTrainer, ScheduledPasses


def finetune(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    routes: Routes,
    out: Path | str,
    settings: FinetuneSettings | None = None,
    name: str | None = None,
    start_from: Path | str | None = None,
    in_place: bool = False,
    trainer_options: Mapping[str, Any] | None = None,
    progress: bool = False,
    clock: Clock | None = None,
) -> TrainingResult:
    """Train a route, or one set of weights for several routes.

    Args:
        model: the full model, which is not changed unless `in_place`. For distillation it is the teacher.
        task: sequences to learn from; nothing that is measured later.
        routes: one route makes a specialist; a family or several routes one elastic set of weights.
        out: folder for the result, its record and the checkpoints; a stopped run resumes there, exactly.
        name: what the model was loaded by.
        start_from: folder of an adapter that an earlier run trained on this model, or `elastic`: train on from its weights.
            The run must have the same rank, scale and prompt depth, and routes that together run the same layers. The
            folder has to stay until the run has ended.
        in_place: with method `full` and without distillation, train the model itself and not a copy.
        trainer_options: further fields of transformers' TrainingArguments, such as report_to, fsdp, bf16.
        clock: seconds since the time budget `settings.max_minutes` began, such as since the program started; None counts
            from this call.

    Raises:
        InputError: for bad settings, routes or rows, or an adapter to start from that does not fit, before anything trains;
            for a loss or weights that are not finite, and where a checkpoint cannot be written, with the last good
            checkpoint kept; for a time budget in which nothing can be learned.

    Example:
        >>> settings = dd.FinetuneSettings(max_tokens=100)
        >>> result = dd.finetune(model, tokenizer, task=many, routes=["uls:50%"], out=folder / "trained", settings=settings)
    """
    clock = clock or since_now()
    settings, session = settings or FinetuneSettings(), Session.of(model, tokenizer)
    chosen: Any = unique_routes(routes, session.n_layers, model)
    rule = next((route.name for route in chosen if not isinstance(route, Route)), None)
    if rule is not None:  # it has no weights of its own to train
        raise InputError(f"{rule!r} is a rule, not one route: train a fixed route, such as uls:50%, or a family of them.")
    refuse_checkpointing(model, chosen, settings.prompt_depth)
    for route in chosen:
        warn_if_prompts_differ(model, route, settings.prompt_depth)
    if in_place and (settings.method != "full" or settings.distill):
        raise InputError(
            "The option in_place=True is for method='full' without distillation: an adapter or a teacher needs the model."
        )
    identity = ModelIdentity.of(model, name)
    start = None if start_from is None else _start(start_from, model, identity.name, chosen, settings, Path(out))
    started = {} if start is None else {"started_from": start.told}
    teacher = session.model if settings.distill else None

    def trainer(trained: Any, passes: ScheduledPasses, arguments: Any) -> DepthTrainer:
        routed = RoutedModel(trained, prompt_depth=settings.prompt_depth, prompt_gradient=settings.prompt_gradient)
        return DepthTrainer(routed, teacher, settings, chosen, passes, arguments)

    def told(_: Any, schedule: Schedule) -> dict[str, Any]:
        tokens = zip(chosen, schedule.tokens_by_route(len(chosen)), strict=True)
        return {"response_tokens_by_route": {route.name: n for route, n in tokens}, **started}

    def complete(folder: Path, record: Mapping[str, Any]) -> None:
        save_card(folder, identity, chosen, settings, record)

    job = Job(
        *("finetune.json", CARD_FILE, settings, settings, chosen),
        student=lambda: student(model, chosen, settings, in_place=in_place, start=start),
        trainer=trainer,
        told=told,
        finish=lambda folder, _, record: complete(folder, record),
        complete=complete,
        about={"routes": [[route.name, str(route)] for route in chosen], **started},
        seen=frozenset() if start is None else start.prompts,
        usual={"ddp_find_unused_parameters": len(chosen) > 1},  # a pass leaves the layers of other routes alone
    )
    given: dict[str, Any] = {"task": task, "out": out, "identity": identity, "options": trainer_options}
    return run_training(job, session, tokenizer, **given, progress=progress, clock=clock)


def _start(
    start_from: Path | str, model: Any, name: str, routes: Sequence[Route], settings: FinetuneSettings, out: Path
) -> Start:
    """The adapter that a run begins with, put to the test before rows are made and a folder is claimed."""
    refuse_adapted(model)
    start = Start.of(start_from, model, name, settings, out)
    with own_chance(settings.seed), student(model, routes, settings, in_place=False, start=start):
        return start
