"""The controller of a study: fitted on train rows, judged on the study's own task, beside the study's other results.

The step of `studies` that goes beyond the paper, which stops at the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from depthdial.control.controller import CONTROLLER_FILE, SequenceController
from depthdial.control.predictors.base import LEAST_ROWS
from depthdial.data.leakage import prompt_hashes, require_apart, require_no_test_split
from depthdial.data.tasks import Task
from depthdial.errors import InputError
from depthdial.files import claim
from depthdial.hf.architectures import count_layers
from depthdial.measure.plan import ModelIdentity
from depthdial.provenance import digest
from depthdial.report.controller.scores import ControllerScores, read_scores
from depthdial.routes import Route
from depthdial.studies.controller import EvaluationSettings, evaluate_controller, kept_budgets

# Rivals of other kinds and certificates are for `controller evaluate`.
JUDGED = EvaluationSettings(rivals=(), epsilons=())
BUDGET = 0.8
EVALUATION = "evaluation"
# Number of parts in which the predictable oracle's guesses are cross-fitted.
_LEAST_JUDGED = 10


def fit_and_judge(
    model: Any,
    tokenizer: Any,
    *,
    routes: Sequence[Route],
    rows: Task,
    task: Task,
    out: Path,
    evaluation: EvaluationSettings,
    prompt_depth: str,
    response_tokens: int,
    name: str | None = None,
    progress: bool = False,
) -> ControllerScores:
    """Fit a controller and judge it, or read what an earlier start found.

    What is finished is not made again: another fit would be on the record as another controller, and times differ.

    Args:
        model: the full model, with the adapter that the routes are of, if any.
        routes: those that skip layers; the full one is added.
        rows, task: to fit on, and to judge on.
        out: a folder for the controller; its rows and its evaluation are in there too.
        evaluation: budgets that the cheapest route does not keep are left out.

    Raises:
        InputError: if there is no route, `out` holds a controller for other ones, or from any step.
    """
    n_layers = count_layers(model)
    family = [*routes, Route(tuple(range(n_layers)), n_layers, "full")]
    cheapest = min(route.cost for route in family)
    if (out / CONTROLLER_FILE).exists():
        SequenceController.from_pretrained(out).check_routes(family)
    else:
        SequenceController.fit(
            model,
            tokenizer,
            task=rows,
            routes=family,
            budget=f"{100 * kept_budgets((BUDGET,), cheapest)[0]:g}%",
            prompt_depth=prompt_depth,  # type: ignore[arg-type]
            response_tokens=response_tokens,
            batch_size=evaluation.batch_size,
            out=out,
            identity=ModelIdentity.of(model, name),
            progress=progress,
        )
    place = out / EVALUATION
    # The page is the last thing that an evaluation writes.
    if (place / "report.html").exists() and (found := read_scores(place)) is not None:
        return found
    evaluation = replace(evaluation, budgets=kept_budgets(evaluation.budgets, cheapest))
    return evaluate_controller(
        model, tokenizer, out, task=task, out=place, settings=evaluation, name=name, progress=progress
    ).scores


def require_rows(task: Task, calibration: Task, rows: Task) -> None:
    """Refuse rows that a controller cannot be fitted on, or a task that it cannot be judged on; before anything runs.

    Raises:
        InputError: for rows of a test split, too few of them or of the task, or any that are in two of the three.
    """
    require_no_test_split(rows, "fit a controller")
    for n, least, what in ((len(rows.examples), LEAST_ROWS, "fit"), (len(task.examples), _LEAST_JUDGED, "judge")):
        if n < least:
            raise InputError(f"{n} sequences are too few to {what} a controller: give {least} or more, better hundreds.")
    require_apart(rows, prompt_hashes(calibration), "to search the routes")
    require_apart(task, prompt_hashes(rows), "to fit the controller")


def claim_controller(folder: Path, rows: Task, evaluation: EvaluationSettings) -> None:
    """Write down what a study's controller is made of, or refuse a folder that holds another one.

    Beside the study's own file and not in it, so that a finished study can be given a controller.
    """
    about = {
        "task": rows.name,
        "split": rows.split,
        "sequences": len(rows.examples),
        "prompts": digest({"prompts": prompt_hashes(rows)}),
        "evaluation": asdict(evaluation),
    }
    claim(folder / "study.json", about, "controller")
