"""T, the specialists that start from it, and elastic weights that start from it, all on the same rows.

With equal seed and batch size they also see the same batches: elastic weights run every batch on all routes.
"""

from __future__ import annotations

import shutil
from typing import Any

import depthdial as dd
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.train.artefact import is_finished
from depthdial.train.settings import FinetuneSettings
from reproduction.answers import evaluate, sample
from reproduction.experiment import Experiment, Subject, say


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
        tokens = run.settings.tokens_per_route
        _train_elastic(run, run.elastic, None if tokens is None else tokens * len(run.routes))


def train_elastic_compute(run: Experiment) -> None:
    """The same at the FLOPs of all specialists together (T, from which all start, left out)."""
    if not _is_done(run, run.elastic_compute):
        wanted = sum(record["train_flops"] for record in (training_record(run, one) for one in run.specialists))
        equal_tokens = training_record(run, run.elastic)
        tokens = round(equal_tokens["response_tokens"] * wanted / equal_tokens["train_flops"])
        _train_elastic(run, run.elastic_compute, max(tokens, 1))


def training_record(run: Experiment, subject: Subject) -> dict[str, Any]:
    """How a subject was trained.

    Raises:
        InputError: if it is not trained yet.
    """
    path = run.record_of(subject)
    if not path.exists():
        raise InputError(f"{subject.name} is not trained yet: run the same command without --only first.")
    return read_json(path, "training record")


def _train_elastic(run: Experiment, subject: Subject, max_tokens: int | None) -> None:
    say(f"training {subject.name}: one set of weights for {len(run.routes)} routes")
    settings = _settings(
        run,
        run.settings.learning_rate,
        max_tokens=max_tokens,
        distill=True,
        cross_entropy=run.settings.elastic_cross_entropy,
        routes_per_step=len(run.routes),  # every batch runs every route, as every specialist sees every batch
    )
    model, tokenizer = run.load(run.whole)
    _train(run, subject, model, tokenizer, settings, run.label(run.whole))


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


def _settings(run: Experiment, learning_rate: float, **more: Any) -> FinetuneSettings:
    given = run.settings
    length: dict[str, Any] = {"max_tokens": given.tokens_per_route}
    if given.epochs is not None:
        length = {"epochs": given.epochs}
    return FinetuneSettings(
        **{
            "method": "full",
            "learning_rate": learning_rate,
            "batch_size": given.batch_size,
            "warmup_fraction": given.warmup_fraction,
            "save_every": given.save_every,
            "seed": given.seed,
            **length,
            **more,
        }
    )


def _is_done(run: Experiment, subject: Subject) -> bool:
    # Weights that have answered may be gone.
    return run.record_of(subject).exists() and (is_finished(run.folder_of(subject)) or run.has_answered(subject))
