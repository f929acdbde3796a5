"""A controller on a tiny random model, and rows to fit, certify and judge it on: what several test files share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from depthdial.control.card import ControllerCard
from depthdial.control.controller import SequenceController
from depthdial.control.fit import FitSettings, unscored_card
from depthdial.data.tasks import Task
from depthdial.engine.session import Session
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from tests.conftest import make_task

ROUTES = ["full", "ee:3", "0,2,4,5"]
_STARTS = ("the", "a", "one", "it", "two dog", "cat on mat", "in the", "six")
_ENDS = ("cat sat", "dog", "was one of", "ran to the mat and", "by four", "is as two", "and", "with a cat in it")


def prompts() -> list[str]:
    """Sixty-four, in an order in which every stretch holds all lengths."""
    made = [f"{start} {end}" for start in _STARTS for end in _ENDS]
    return [made[i * 37 % len(made)] for i in range(len(made))]


def rows(split: str) -> Task:
    """38 rows of `train`, 14 of `validation`, 12 of `test`; no prompt is in two of them."""
    part = {"train": slice(0, 38), "validation": slice(38, 52), "test": slice(52, 64)}[split]
    chosen = prompts()[part]
    return replace(make_task(chosen, [f"the {prompt}" for prompt in chosen], f"tiny-{split}"), split=split)


def fit_tiny(model: Any, tokenizer: Any, out: Path | None = None, **options: Any) -> SequenceController:
    given = {"task": rows("train"), "routes": ROUTES, "budget": 4.5, "response_tokens": 5, "n_folds": 3, "out": out}
    return SequenceController.fit(model, tokenizer, **{**given, **options})


def card_for(model: Any, tokenizer: Any, task: Task, routes: tuple[Route, ...], **settings: Any) -> ControllerCard:
    """Of a controller that is yet to be fitted: what says how rows are measured."""
    costs, about = tuple(float(len(route)) for route in routes), (FitSettings(**settings), ModelIdentity.of(model))
    return unscored_card(Session.of(model, tokenizer), tokenizer, task, routes, *about, costs)
