"""T, the specialists that start from it, and elastic weights that start from it, all on the same rows.

With equal seed and batch size they also see the same batches: elastic weights run every batch on all routes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import depthdial as dd
from depthdial.engine.session import Session
from depthdial.files import write_json
from depthdial.measure.cost import model_cost
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow, training_rows
from depthdial.train.schedule import Schedule, make_schedule, training_flops
from reproduction.answers import evaluate, sample
from reproduction.experiment import Experiment, is_finished, say
from reproduction.folder import Subject


def train_full(run: Experiment) -> None:
    """T: the whole model on the references. The paper fine-tunes it first; everything else starts from it."""
    if not _is_done(run, run.whole):
        say("training T, the full model")
        model, tokenizer = run.load(run.untouched)
        _train(run, run.whole, model, tokenizer, _settings(run, run.settings.full_learning_rate), run.settings.model)


def train_specialists(run: Experiment) -> None:
    """T_ULS,c for every c: cross-entropy on the references; the layers that a route skips are frozen."""
    for number, subject in enumerate(run.specialists, 1):
        if not _is_done(run, subject):
            say(f"training specialist {number} of {len(run.specialists)}: {subject.routes[0]}")
            model, tokenizer = run.load(run.whole)
            _train(run, subject, model, tokenizer, _settings(run, run.settings.learning_rate), run.label(run.whole))
            del model
        if not run.settings.keep_weights:
            evaluate(run, subject)
            sample(run, subject)
            shutil.rmtree(run.folder_of(subject), ignore_errors=True)


def train_elastic(run: Experiment) -> None:
    """One set of weights for all routes, at the specialists' response tokens per route."""
    if not _is_done(run, run.elastic):
        say(f"training elastic weights for {len(run.routes)} routes, as many tokens for each as a specialist has")
        model, tokenizer = run.load(run.whole)
        _train(run, run.elastic, model, tokenizer, _elastic_settings(run), run.label(run.whole))


def train_elastic_compute(run: Experiment) -> None:
    """The same at the FLOPs of all specialists together, to the nearest step (T, from which all start, left out)."""
    if not _is_done(run, run.elastic_compute):
        flops = sum(run.training_record(one)["train_flops"] for one in run.specialists)
        say(f"training elastic weights for {len(run.routes)} routes, {flops:.3g} FLOPs as all specialists together")
        model, tokenizer = run.load(run.whole)
        rows = training_rows(run.train, tokenizer, Session.of(model, tokenizer))
        settings = replace(_elastic_settings(run), max_tokens=_tokens_worth(run, flops, model, rows))
        _train(run, run.elastic_compute, model, tokenizer, settings, run.label(run.whole))


def _elastic_settings(run: Experiment) -> FinetuneSettings:
    settings = _settings(run, run.settings.learning_rate)
    tokens = settings.max_tokens
    return replace(
        settings,
        max_tokens=None if tokens is None else tokens * len(run.routes),
        distill=True,
        cross_entropy=run.settings.elastic_cross_entropy,
        routes_per_step=len(run.routes),  # every batch runs every route, as every specialist sees every batch
    )


def _tokens_worth(run: Experiment, flops: float, model: Any, rows: Sequence[TrainingRow]) -> int:
    """The response tokens after which elastic training has spent `flops`, as nearly as whole steps can."""
    parsed = [dd.Route.parse(route, run.n_layers) for route in run.routes]
    routes = [route for route in parsed if isinstance(route, dd.Route)]
    settings, known = _elastic_settings(run), run.training_record(run.elastic)
    steps_like_those = flops / known["train_flops"]
    long_enough = math.ceil(known["response_tokens"] * (1.5 * steps_like_those + 1))
    schedule = make_schedule(rows, routes, replace(settings, max_tokens=long_enough))
    cost, tokens, spent = model_cost(model), 0, 0.0
    for start in range(0, len(schedule.passes), schedule.per_step):
        step = Schedule(schedule.passes[start : start + schedule.per_step], schedule.per_step, 1, 1)
        more = training_flops(cost, step, rows, routes, settings)
        if tokens and spent + more / 2 > flops:
            break
        spent, tokens = spent + more, tokens + sum(one.n_tokens for one in step.passes)
    return tokens


def _train(run: Experiment, subject: Subject, model: Any, tokenizer: Any, settings: FinetuneSettings, name: str) -> None:
    result = dd.finetune(
        model,
        tokenizer,
        task=run.train,
        routes=subject.routes,
        out=run.folder_of(subject),
        settings=settings,
        name=name,
        in_place=not settings.distill,  # a teacher must stay; without one the model is loaded to be trained
        progress=True,
    )
    write_json(run.record_of(subject), dict(result.record))


def _settings(run: Experiment, learning_rate: float) -> FinetuneSettings:
    given = run.settings
    return FinetuneSettings(
        method="full",
        learning_rate=learning_rate,
        batch_size=given.batch_size,
        max_tokens=given.tokens_per_route,
        epochs=given.epochs or 1.0,
        warmup_fraction=given.warmup_fraction,
        save_every=given.save_every,
        seed=given.seed,
    )


def _is_done(run: Experiment, subject: Subject) -> bool:
    # Weights that have answered may be gone.
    return run.record_of(subject).exists() and (is_finished(run.folder_of(subject)) or run.has_answered(subject))
