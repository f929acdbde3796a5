"""Judge a controller on test rows: the verb `controller evaluate`, in one folder, to be stopped and started again.

A room of its own, between the command line and the others, as `studies` is. The score and what it is held against are in
`choose.gap`; here rows are measured, rivals are fitted on the rows of the fit, and certificates made on rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.choose.cascade import best_cascades, cascade_curve
from depthdial.choose.controller import SequenceController
from depthdial.choose.controller_certify import certification_plan, certify_rows
from depthdial.choose.controller_fit import MEASURED, measure_for, require_unseen, route_costs, row_settings
from depthdial.choose.controller_rivals import Learned, learn_again
from depthdial.choose.controller_rows import MeasuredRows, measure_known, read_measured
from depthdial.choose.gap import ControllerScore, score_controller
from depthdial.choose.gap_inputs import check_options
from depthdial.choose.guarantee import Certificate, CertificationPlan
from depthdial.choose.policy import prices_for_budgets
from depthdial.choose.predictors.fitting import KINDS
from depthdial.errors import InputError, check_choice
from depthdial.files import claim, write_atomically
from depthdial.generation.overhead import ChoosingTime, time_choosing
from depthdial.measure.apart import prompt_hashes, require_apart, require_no_test_split
from depthdial.measure.batches import Runner
from depthdial.measure.plan import ModelIdentity, check_positive
from depthdial.measure.provenance import environment
from depthdial.measure.quality import require_rouge
from depthdial.measure.sweep import sweep
from depthdial.measure.tasks import Task, as_task, encode
from depthdial.report.controller_page import write_controller_report
from depthdial.report.controller_scores import ControllerScores, keep_scores
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
        epsilons, delta: certificates to try on the calibration rows.
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
            check_positive(getattr(self, name), name)
        is_count = isinstance(self.samples, int) and not isinstance(self.samples, bool)
        if not is_count or self.samples < 0 or self.samples % 2:
            raise InputError(f"samples must be an even number, 0 for no predictable oracle, not {self.samples!r}.")
        if not self.budgets or not all(0 < share <= 1 for share in self.budgets):
            raise InputError(f"budgets must be shares of the full cost above 0 and at most 1, not {self.budgets!r}.")
        for kind in self.rivals:
            check_choice("rival", kind, KINDS)
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
        calibration: rows of neither, for the certificates and the cascade's thresholds; without them there are none.
        out: a folder for rows, scores, tables, figures and the page; a stopped run goes on there.

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
    _require_apart(controller, task, calibration)
    plans = _checked(controller, task, calibration, settings)
    if calibration is not None:
        controller.certified_on.require_untried(plans, prompt_hashes(calibration))
    learned = learn_again(controller, fitted, rivals=settings.rivals, seeds=settings.seeds, seed=settings.seed)
    identity = ModelIdentity.of(model, name)
    about = {**asdict(settings), "task": task.name, "split": task.split, "sequences": len(task.examples)}
    about |= {"weights_hash": identity.weights_hash, "controller": certification_plan(controller, 0.5).about["controller"]}
    claim(out / "evaluation.json", about, "controller's evaluation")
    runner = Runner.of(model, tokenizer)
    timed = encode(task, tokenizer, context_tokens=runner.context_tokens)[: settings.timed_prompts]
    time = time_choosing(model, tokenizer, controller, timed, controller.card.response_tokens)
    layer_costs = np.array(route_costs("ms", runner, timed, controller.routes))
    # What a step takes beside its layers (embeddings, head, overhead) is the same on every route.
    route_ms = layer_costs + max(time.step_ms - layer_costs[controller.card.full], 0.0)
    common: dict[str, Any] = {"batch_size": settings.batch_size, "identity": identity, "progress": progress}
    rows = measure_for(controller, model, tokenizer, task, out=out / "test", **common)
    held = None
    if calibration is not None:
        held = measure_for(controller, model, tokenizer, calibration, out=out / "calibration", **common)
        controller.certified_on.note(plans, held.prompts)
    known = None
    if settings.samples and controller.card.metric == "agreement":
        wanted = row_settings(controller, settings.batch_size)
        known = measure_known(
            model,
            tokenizer,
            task,
            wanted,
            rows.sequence_ids,
            samples=settings.samples,
            out=out / "test",
            identity=identity,
            progress=progress,
        )
    job = _Evaluation(controller, learned, rows, settings, known)
    cascade = None
    if held is not None:
        cascade = _cascade(job, held, (calibration, task), model, tokenizer, out, common)
    rouge = _answers(controller, model, tokenizer, task, out, common) if settings.rouge else None
    scores = ControllerScores(
        job.scores(time, route_ms, cascade, rouge),
        () if held is None or calibration is None else _certificates(controller, plans, held, calibration),
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

    @property
    def budgets(self) -> np.ndarray:
        return self.controller.card.full_cost * np.array(self.settings.budgets)

    @cached_property
    def predicted(self) -> dict[str, np.ndarray]:
        """By name, (n_seeds, n, n_routes) qualities predicted of the test rows: the same for every metric and cost."""
        return {name: one.predict(self.rows.features) for name, one in self.learned.items()}

    def scores(
        self,
        time: ChoosingTime,
        route_ms: np.ndarray,
        cascade: tuple[np.ndarray, np.ndarray] | None,
        rouge: np.ndarray | None,
    ) -> dict[str, ControllerScore]:
        """By metric and cost: the metric that the controller predicts first; then the same by measured ms.

        Args:
            route_ms: (n_routes,) measured milliseconds of a decoding step on each route.
        """
        card = self.controller.card
        own = self.rows.values(card.metric, self.routes)
        overhead = time.overhead_in(card.full_cost)
        found = {card.metric: self._score(card.metric, card.cost_unit, own, self.controller.costs, overhead, cascade)}
        if card.cost_unit != "ms":
            overhead = time.overhead_in(float(route_ms[card.full]))
            found[f"{card.metric} by ms"] = self._score(card.metric, "ms", own, route_ms, overhead, None)
        if rouge is not None and card.metric != "rouge_l":
            overhead = time.overhead_in(card.full_cost)
            found["rouge_l"] = self._score("rouge_l", card.cost_unit, rouge, self.controller.costs, overhead, None)
        return found

    def _score(
        self,
        metric: str,
        unit: str,
        values: np.ndarray,
        costs: np.ndarray,
        overhead: float,
        cascade: tuple[np.ndarray, np.ndarray] | None,
    ) -> ControllerScore:
        """`values` (n, n_routes) paid at `costs` (n_routes,), chosen on predictions of the controller's own metric."""
        card, shares = self.controller.card, self.settings.budgets
        if unit != card.cost_unit:  # of the time even the cheapest route may take more than its share of the layers
            shares = kept_budgets(shares, float(costs.min() / costs[card.full]))
        budgets = costs[card.full] * np.array(shares)
        prices = {
            name: np.stack([prices_for_budgets(calibration, costs, budgets) for calibration in one.calibrations])
            for name, one in self.learned.items()
        }
        return score_controller(
            [route.name for route in self.routes],
            values,
            costs,
            self.predicted,
            prices,
            budgets,
            overhead=overhead,
            known=self.known if metric == card.metric else None,
            cascade=cascade,
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


def _checked(
    controller: SequenceController, task: Task, calibration: Task | None, settings: EvaluationSettings
) -> list[CertificationPlan]:
    """Refuse what would only show after hours of measuring; the plans of the certificates, for which no row is needed."""
    if settings.rouge:
        require_rouge(task.examples, "leave ROUGE out")
    check_options(len(task.examples), _folds(len(task.examples)), settings.n_bootstrap, _CONFIDENCE)
    prices_for_budgets(controller.calibration, controller.costs, controller.card.full_cost * np.array(settings.budgets))
    if calibration is None:
        return []
    return [certification_plan(controller, epsilon, delta=settings.delta) for epsilon in settings.epsilons]


def _certificates(
    controller: SequenceController, plans: Sequence[CertificationPlan], held: MeasuredRows, calibration: Task
) -> tuple[Certificate, ...]:
    """One for each plan; each holds with its own delta, and all of them together with less."""
    about = {"task": calibration.name, "split": calibration.split, "source": calibration.source_fingerprint}
    return tuple(certify_rows(controller, plan, held, about) for plan in plans)


def _folds(n: int) -> int:
    return min(_FOLDS, max(2, n))


def _cascade(
    job: _Evaluation,
    held: MeasuredRows,
    tasks: Sequence[Task | None],
    model: Any,
    tokenizer: Any,
    out: Path,
    common: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Answer on the cheapest route and, where that answer's own NLL is high, on the full one; thresholds of `held`."""
    controller, parts = job.controller, []
    card, cheapest = controller.card, int(controller.costs.argmin())
    for part, task in zip(("calibration", "test"), tasks, strict=True):
        table = sweep(
            model,
            tokenizer,
            task=task,  # type: ignore[arg-type]
            routes=[controller.routes[cheapest]],
            metrics=("answer_nll",),
            max_new_tokens=card.response_tokens,
            prompt_depth=card.prompt_depth,
            full_untouched=True,
            out=out / part / "cascade",
            **common,
        )
        by_id = dict(zip(table.column("sequence_id").to_pylist(), table.column("answer_nll").to_pylist(), strict=True))
        rows = held if part == "calibration" else job.rows
        sure = np.full((len(rows.sequence_ids), len(controller.routes)), -np.inf)
        sure[:, cheapest] = [-by_id[one] for one in rows.sequence_ids]
        parts.append((sure, rows.values(card.metric, controller.routes)))
    (sure_held, values_held), (sure, values) = parts
    chosen = best_cascades(sure_held, values_held, controller.costs, job.budgets, shallow=[cheapest], deep=[card.full])
    return cascade_curve(chosen, sure, values, controller.costs)


def _answers(
    controller: SequenceController, model: Any, tokenizer: Any, task: Task, out: Path, common: Mapping[str, Any]
) -> np.ndarray:
    """(n, n_routes) ROUGE-L of the greedy answers of every route."""
    table = sweep(
        model,
        tokenizer,
        task=task,
        routes=controller.routes,
        metrics=("rouge_l",),
        max_new_tokens=controller.card.response_tokens,
        prompt_depth=controller.card.prompt_depth,
        full_untouched=True,
        out=out / "test" / "answers",
        **common,
    )
    ids = tuple(example.id for example in task.examples)
    return MeasuredRows(ids, prompt_hashes(task), np.empty((len(ids), 0)), table).values("rouge_l", controller.routes)


def _keep_predictions(path: Path, controller: SequenceController, rows: MeasuredRows) -> None:
    """What the controller itself predicted of each test sequence and route, beside what was measured."""
    predicted, values = controller.predict(rows.features), rows.values(controller.card.metric, controller.routes)
    n, names = len(rows.sequence_ids), _names(controller)
    columns = {
        "sequence_id": np.repeat(rows.sequence_ids, len(names)),
        "route": np.tile(names, n),
        "predicted": predicted.ravel(),
        "measured": values.ravel(),
    }
    write_atomically(path, lambda part: pq.write_table(pa.table(columns), part))


def _names(controller: SequenceController) -> list[str]:
    return [route.name for route in controller.routes]


def _require_apart(controller: SequenceController, task: Task, calibration: Task | None) -> None:
    require_unseen(controller, task)
    own = certification_plan(controller, 0.5).about["controller"]
    require_apart(task, controller.certified_on.prompts(own), "to certify the controller")
    if calibration is not None:
        require_no_test_split(calibration, "certify")
        require_unseen(controller, calibration)
        require_apart(task, prompt_hashes(calibration), "as calibration rows")


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
        "r2": {route.name: r2 for route, r2 in zip(card.routes, card.r2, strict=True)},
        "fitted_on": shown,
        "task": f"{task.name}, {task.split}",
        "n_sequences": len(rows.sequence_ids),
        "seeds": settings.seeds,
        **environment(),
    }
