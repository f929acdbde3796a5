"""Judge a controller on test rows: the verb `controller evaluate`, in one folder, to be stopped and started again.

The score and what it is held against are in `control.judge.headroom`; here rows are measured, rivals are fitted on the
rows of the fit, and certificates made on rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.checks import choice, share, whole
from depthdial.control.baselines import Learned, learn_again
from depthdial.control.certify import certification_plan, certify_rows
from depthdial.control.controller import SequenceController
from depthdial.control.fit import MEASURED, measure_for, require_unseen, route_costs
from depthdial.control.judge.headroom import ControllerScore, score_controller
from depthdial.control.judge.inputs import check_options
from depthdial.control.overhead import ChoosingTime, time_choosing
from depthdial.control.prediction import LAYER_STEPS, LAYERS, MS, Prediction, cost_table
from depthdial.control.predictors.fitting import KINDS
from depthdial.control.rows import MeasuredRows, measure_known, read_measured, swept
from depthdial.data.leakage import prompt_hashes, require_apart, require_no_test_split
from depthdial.data.tasks import Task, as_task, encode
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import claim, write_atomically
from depthdial.guarantee.plan import Certificate, CertificationPlan
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.quality import require_rouge
from depthdial.oracles.prices import prices_for_budgets
from depthdial.provenance import environment
from depthdial.report.controller.page import write_controller_report
from depthdial.report.controller.scores import ControllerScores, keep_scores
from depthdial.routes import Route

PREDICTIONS_FILE = "predictions.parquet"
# Parts of the test sequences for the predictable oracle's cross-fitted guesses, where there are so many sequences.
_FOLDS, _CONFIDENCE = 10, 0.95


@dataclass(frozen=True)
class EvaluationSettings:
    """How a controller is judged.

    Attributes:
        budgets: mean costs, as shares of the full route's.
        samples: answers that are drawn from the full model for the predictable oracle of agreement; 0 for none.
        seeds: times that the controller and its rivals are fitted anew, each time without another tenth of the rows,
            or with fewer left out where a fit would have too few.
        rivals: other kinds of predictors to put beside the controller's.
        rouge: also answer on every route and score ROUGE-L.
        epsilons: certificates to try on the calibration rows: losses of quality that are allowed.
        delta: probability of a wrong certificate.
        batch_size: sequences run together.
        timed_prompts: prompts on which the controller's own time is measured.
    """

    budgets: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)
    samples: int = 4
    seeds: int = 5
    rivals: tuple[str, ...] = ("mlp", "trees")
    rouge: bool = False
    epsilons: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05)
    delta: float = 0.05
    batch_size: int = 16
    timed_prompts: int = 16
    n_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds", "batch_size", "timed_prompts"):
            whole(name, getattr(self, name), 1)
        if whole("samples", self.samples, 0) % 2:
            raise InputError(f"Invalid samples {self.samples!r}: use an even number, 0 for no predictable oracle.")
        if not self.budgets:
            raise InputError("No budget was given: name shares of the full cost, such as 0.8.")
        for budget in self.budgets:
            share("budget", budget)
        for kind in self.rivals:
            choice("rival", kind, KINDS)
        for epsilon in self.epsilons:
            CertificationPlan(("full", "another"), epsilon, self.delta)  # refuses what is out of range


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation leaves: the page's path, and the scores that it shows."""

    report: Path
    scores: ControllerScores


def evaluate_controller(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    *,
    task: Task,
    calibration: Task | None = None,
    out: Path | str,
    settings: EvaluationSettings | None = None,
    name: str | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Judge the controller in `folder`, beside its rivals, and write the report.

    Args:
        model: what the controller is for, with its adapter.
        folder: where `SequenceController.fit` left the controller and its measured rows.
        task: test rows; none of the fit.
        calibration: rows of neither, for the certificates; without them there are none.
        out: a folder for rows, scores, tables, figures and the page; a stopped run resumes there.

    Raises:
        InputError: if rows overlap, the model is another one, the rows of the fit are gone, a budget is below the cheapest
            route, or `out` holds something else; all of it before anything is measured.
    """
    settings, folder, out = settings or EvaluationSettings(), Path(folder), Path(out)
    controller = SequenceController.from_pretrained(folder)
    controller.check(model)
    fitted = read_measured(folder / MEASURED, controller.card.features, controller.card.fitted_on["prompts"])
    task = as_task(task)
    calibration = None if calibration is None else as_task(calibration, held_out=True)
    own = certification_plan(controller, 0.5).about["controller"]
    require_unseen(controller, task, model)
    require_apart(task, controller.certified_on.prompts(own), "to certify the controller")
    if calibration is not None:
        require_no_test_split(calibration, "certify")
        require_unseen(controller, calibration, model)
        require_apart(task, prompt_hashes(calibration), "as calibration rows")
    # What would only show after hours of measuring.
    if settings.rouge:
        require_rouge(task.examples, "leave ROUGE out")
    check_options(len(task.examples), _folds(len(task.examples)), settings.n_bootstrap, _CONFIDENCE)
    fit, budgets = controller.calibration, controller.card.full_cost * np.array(settings.budgets)
    prices_for_budgets(fit.quality, controller.expected_costs(fit), budgets)
    plans: list[CertificationPlan] = []
    if calibration is not None:
        plans = [certification_plan(controller, epsilon, delta=settings.delta) for epsilon in settings.epsilons]
        controller.certified_on.require_untried(plans, prompt_hashes(calibration))
    learned = learn_again(controller, fitted, rivals=settings.rivals, seeds=settings.seeds, seed=settings.seed)
    identity = ModelIdentity.of(model, name)
    about = {**asdict(settings), "task": task.name, "split": task.split, "sequences": len(task.examples)}
    about |= {"weights_hash": identity.weights_hash, "controller": own}
    claim(out / "evaluation.json", about, "controller's evaluation")
    session = Session.of(model, tokenizer)
    timed = encode(task, tokenizer, context_tokens=session.context_tokens)[: settings.timed_prompts]
    time = time_choosing(model, tokenizer, controller, timed, controller.card.response_tokens)
    layer_costs = np.array(route_costs(MS, session, timed, controller.routes))
    # What a step takes beside its layers (embeddings, head, overhead) is the same on every route.
    route_ms = layer_costs + max(time.step_ms - layer_costs[controller.card.full], 0.0)
    common: dict[str, Any] = {"batch_size": settings.batch_size, "identity": identity, "progress": progress}
    rows = measure_for(controller, model, tokenizer, task, out=out / "test", **common)
    certificates: list[Certificate] = []  # each holds with its own delta, and all of them together with less
    if calibration is not None:
        held = measure_for(controller, model, tokenizer, calibration, out=out / "calibration", **common)
        controller.certified_on.note(plans, held.prompts)
        about = {"task": calibration.name, "split": calibration.split, "source": calibration.source_fingerprint}
        certificates = [certify_rows(controller, plan, held, about) for plan in plans]
    known = rouge = None
    if settings.samples and controller.card.metric == "agreement":
        options = common | {"samples": settings.samples, "out": out / "test"}
        known = measure_known(model, tokenizer, task, controller.card, rows.sequence_ids, **options)
    if settings.rouge:
        folder = out / "test" / "answers"
        rouge = replace(rows, table=swept(model, tokenizer, task, controller.card, ("rouge_l",), out=folder, **common))
    scores = ControllerScores(
        _Evaluation(controller, learned, rows, settings, known).scores(time, route_ms, rouge),
        tuple(certificates),
        {**time.record(), "route_ms": dict(zip(_names(controller), route_ms.tolist(), strict=True)), **environment()},
        _about(controller, task, settings, rows),
    )
    keep_scores(out, scores)
    _keep_predictions(out / PREDICTIONS_FILE, controller, rows)
    return EvaluationResult(write_controller_report(out), scores)


@dataclass(frozen=True)
class _Evaluation:
    controller: SequenceController
    learned: Mapping[str, Learned]
    rows: MeasuredRows
    settings: EvaluationSettings
    known: np.ndarray | None

    @property
    def routes(self) -> tuple[Route, ...]:
        return self.controller.routes

    @cached_property
    def predicted(self) -> dict[str, tuple[Prediction, ...]]:
        """By name, of each seed what was predicted of the test rows: the same for every metric and cost."""
        return {name: one.predict(self.rows.features) for name, one in self.learned.items()}

    def scores(self, time: ChoosingTime, route_ms: np.ndarray, rouge: MeasuredRows | None) -> dict[str, ControllerScore]:
        """By metric and cost: the metric that the controller predicts first, in its own unit; then the same in other units,
        weighted by tokens, and other metrics.

        Args:
            route_ms: (n_routes,) measured milliseconds of a decoding step on each route.
        """
        card = self.controller.card
        n_layers = np.array([float(len(route)) for route in self.routes])
        of_unit = {LAYER_STEPS: n_layers / n_layers[card.full], LAYERS: n_layers, MS: route_ms}
        of_unit[card.cost_unit] = self.controller.costs

        def score(unit: str, **options: Any) -> ControllerScore:
            return self._score(unit, of_unit[unit], time, **options)

        found = {card.metric: score(card.cost_unit)}
        if card.cost_unit != LAYERS:
            found[f"{card.metric} weighted by tokens"] = score(card.cost_unit, by_tokens=True)
            found[f"{card.metric} by layers per sequence"] = score(LAYERS)
        if card.cost_unit != MS:
            found[f"{card.metric} by ms"] = score(MS)
        if rouge is not None and card.metric != "rouge_l":
            found["rouge_l"] = score(card.cost_unit, rows=rouge, metric="rouge_l")
        return found

    def _score(
        self,
        unit: str,
        step_costs: np.ndarray,
        time: ChoosingTime,
        *,
        rows: MeasuredRows | None = None,
        metric: str | None = None,
        by_tokens: bool = False,
    ) -> ControllerScore:
        """One score, chosen on predictions of the controller's own metric.

        Args:
            step_costs: (n_routes,) what a decoding step costs on each route.
            rows: those whose values of `metric` and steps are paid; the controller's own by default.
            by_tokens: longer answers weigh more in the mean quality, by the full model's tokens.
        """
        card, rows, metric = self.controller.card, rows or self.rows, metric or self.controller.card.metric
        values, steps = rows.values(metric, self.routes), rows.steps(self.routes)
        full_steps = steps[:, card.full]

        def weigh(one: Prediction) -> np.ndarray:
            """Quality times tokens is what a mean by tokens adds up."""
            return one.quality * ((one.steps + 1) / (card.mean_steps + 1)) if by_tokens else one.quality

        def expect(one: Prediction) -> np.ndarray:
            return cost_table(unit, step_costs, one.steps, card.mean_steps)

        shares = self.settings.budgets
        if unit != card.cost_unit:  # of the time even the cheapest route may take more than its share of the layers
            expected = [expect(known).min(axis=1).mean() for one in self.learned.values() for known in one.known()]
            shares = kept_budgets(shares, float(max(step_costs.min(), *expected) / step_costs[card.full]))
        budgets = step_costs[card.full] * np.array(shares)
        prices = {
            name: np.stack([prices_for_budgets(weigh(known), expect(known), budgets) for known in one.known()])
            for name, one in self.learned.items()
        }
        return score_controller(
            [route.name for route in self.routes],
            values,
            cost_table(unit, step_costs, steps, float(full_steps.mean())),
            {name: np.stack([weigh(one) for one in each]) for name, each in self.predicted.items()},
            prices,
            budgets,
            expected={name: np.stack([expect(one) for one in each]) for name, each in self.predicted.items()},
            bases=None if unit == LAYERS else full_steps / full_steps.mean(),
            counted=full_steps + 1 if by_tokens else None,
            overhead=time.overhead_in(float(step_costs[card.full])),
            known=self.known if metric == card.metric else None,
            metric=metric,
            cost=unit,
            n_folds=_folds(len(values)),
            n_bootstrap=self.settings.n_bootstrap,
            confidence=_CONFIDENCE,
            seed=self.settings.seed,
        )


def kept_budgets(shares: Sequence[float], cheapest: float) -> tuple[float, ...]:
    """Those of some budgets that the cheapest route keeps; where it keeps none, one halfway from it to the full model.

    Everything here is a share of the full model's cost.
    """
    kept = tuple(share for share in shares if share >= cheapest * (1 - 1e-13))
    return kept or ((1 + cheapest) / 2,)


def _folds(n: int) -> int:
    return min(_FOLDS, max(2, n))


def _keep_predictions(path: Path, controller: SequenceController, rows: MeasuredRows) -> None:
    """What the controller itself predicted of each test sequence and route, beside what was measured."""
    predicted, values = controller.predict(rows.features), rows.values(controller.card.metric, controller.routes)
    steps = rows.steps(controller.routes)
    n, names = len(rows.sequence_ids), _names(controller)
    columns = {
        "sequence_id": np.repeat(rows.sequence_ids, len(names)),
        "route": np.tile(names, n),
        "predicted": predicted.quality.ravel(),
        "measured": values.ravel(),
        "predicted_steps": predicted.steps.ravel(),
        "measured_steps": steps.ravel(),
    }
    write_atomically(path, lambda part: pq.write_table(pa.table(columns), part))


def _names(controller: SequenceController) -> list[str]:
    return [route.name for route in controller.routes]


def _about(controller: SequenceController, task: Task, settings: EvaluationSettings, rows: MeasuredRows) -> dict[str, Any]:
    card = controller.card
    shown = {name: card.fitted_on.get(name) for name in ("task", "split", "n_sequences", "cross_validated_mse")}
    return {
        "model": card.model,
        "predictor": controller.predictor.kind,
        "metric": card.metric,
        "prompt_depth": card.prompt_depth,
        "response_tokens": card.response_tokens,
        "routes": {route.name: str(route) for route in card.routes},
        "cost": card.cost_unit,
        "mean_steps": card.mean_steps,
        "steps_r2": {route.name: r2 for route, r2 in zip(card.routes, card.steps_r2, strict=True)},
        "r2": {route.name: r2 for route, r2 in zip(card.routes, card.r2, strict=True)},
        "fitted_on": shown,
        "task": f"{task.name}, {task.split}",
        "n_sequences": len(rows.sequence_ids),
        "seeds": settings.seeds,
        **environment(),
    }
