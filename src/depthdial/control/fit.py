"""Fit a sequence controller: measure the routes on rows of a task, learn to predict them, set a price for the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.checks import choice, whole
from depthdial.control.card import METRICS, ControllerCard, check_family
from depthdial.control.fitted import FittedController
from depthdial.control.prediction import COST_UNITS, LAYER_STEPS, LAYERS, MS, Prediction, likely_steps
from depthdial.control.predictors.base import LEAST_ROWS
from depthdial.control.predictors.fitting import KINDS, choose_kind, cross_validated, explained, fit_predictor
from depthdial.control.rows import MeasuredRows, measure_rows
from depthdial.data.leakage import prompt_hashes, require_apart, require_no_test_split, require_unsearched
from depthdial.data.tasks import EncodedExample, Task, as_task, encode
from depthdial.data.templates import resolve_template
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap
from depthdial.hf.known_routes import best_known_routes
from depthdial.hf.weights import weights_hash
from depthdial.measure.features import FeatureSpec
from depthdial.measure.latency import layer_flops, layer_ms
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.quality import require_rouge
from depthdial.oracles.modelled import loaded_latency
from depthdial.oracles.prices import Budget, budget_in, price_for_budget
from depthdial.provenance import environment
from depthdial.routes import Route
from depthdial.routes.families import fixed_routes
from depthdial.views.passes import PROMPT_DEPTHS, PromptDepth

AUTO = "auto"
MEASURED = "measured"
# Of a family that was not asked for by name.
_MOST_ROUTES = 6


@dataclass(frozen=True)
class FitSettings:
    """How a controller is fitted.

    Attributes:
        budget: a share of the full model's cost (80%), or a number of layers (24).
        metric: what is predicted: agreement or rouge_l.
        cost: what is spent: layer_steps (layers times decoding steps), layers (by sequence), flops or ms.
        latency: of cost ms: a bench.json or its folder, in place of measuring here.
        predictor: ridge, trees, mlp, or auto for the one that predicts best.
        prompt_depth: full (the prompt runs every layer) or route.
        response_tokens: longest answer, in tokens.
        batch_size: sequences run together.
        n_folds: of cross-validation.
        allow_searched_rows: also take rows that routes were searched on, or the model trained on.
    """

    budget: Budget = "80%"
    metric: str = "agreement"
    cost: str = "layer_steps"
    predictor: str = "ridge"
    prompt_depth: PromptDepth = "full"
    response_tokens: int = 64
    batch_size: int = 16
    n_folds: int = 5
    seed: int = 0
    allow_searched_rows: bool = False
    latency: str | None = None

    def __post_init__(self) -> None:
        choice("metric of a controller", self.metric, METRICS)
        choice("cost", self.cost, COST_UNITS)
        if self.latency is not None:
            object.__setattr__(self, "latency", str(self.latency))
            loaded_latency(self.latency, self.cost)
        choice("predictor", self.predictor, (*KINDS, AUTO))
        choice("prompt depth", self.prompt_depth, PROMPT_DEPTHS)
        for name, least in (("response_tokens", 1), ("batch_size", 1), ("n_folds", 2), ("seed", 0)):
            whole(name, getattr(self, name), least)
        budget_in(LAYERS, self.budget, full_cost=1.0, n_layers=1)


def fit_controller(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    routes: Any,
    settings: FitSettings,
    out: Path | str | None,
    identity: ModelIdentity | None,
    progress: bool,
) -> FittedController:
    """See `SequenceController.fit`, which makes a controller of it."""
    task = as_task(task, held_out=True)
    require_no_test_split(task, "fit a controller")
    if len(task.examples) < max(LEAST_ROWS, settings.n_folds):
        raise InputError(
            f"{len(task.examples)} rows are too few to fit a controller: give {max(LEAST_ROWS, settings.n_folds)} or more, "
            "better a thousand."
        )
    session = Session.of(model, tokenizer)
    family = _spread(best_known_routes(model)) if routes is None else fixed_routes(routes, session.n_layers)
    check_family(family, session.n_layers)
    if not settings.allow_searched_rows:
        require_unsearched(task, family, model)
    if settings.metric == "rouge_l":
        require_rouge(task.examples, "predict agreement")
    examples = encode(task, tokenizer, context_tokens=session.context_tokens)
    costs = route_costs(settings.cost, session, examples, family, settings.latency)
    _check_budget(settings.budget, costs, settings.cost, session.n_layers)
    identity = identity or ModelIdentity.of(model)
    card = unscored_card(session, tokenizer, task, family, settings, identity, costs)
    options: dict[str, Any] = {"batch_size": settings.batch_size, "identity": identity, "progress": progress}
    rows = measure_rows(model, tokenizer, task, card, out=None if out is None else Path(out) / MEASURED, **options)
    return fit_rows(rows, card, settings)


def _check_budget(budget: Budget, costs: Sequence[float], unit: str, n_layers: int) -> None:
    wanted = budget_in(unit, budget, full_cost=max(costs), n_layers=n_layers)
    if wanted < min(costs) * (1 - 1e-9):
        share = f": did you mean '{100 * wanted:g}%'?" if wanted <= 1 and unit == LAYERS else ": give at least that."
        raise InputError(f"The budget {wanted:g} is below the cheapest route, whose mean cost is {min(costs):.10g}{share}")


def _spread(routes: Sequence[Route]) -> tuple[Route, ...]:
    """At most six routes, evenly by depth, the cheapest and the full one among them: each costs a measurement."""
    ordered = sorted(routes, key=len)
    places = np.linspace(0, len(ordered) - 1, min(_MOST_ROUTES, len(ordered))).round().astype(int)
    return tuple(ordered[i] for i in dict.fromkeys(places.tolist()))


def measure_for(
    controller: FittedController,
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    batch_size: int,
    out: Path | str | None,
    identity: ModelIdentity | None,
    progress: bool,
) -> MeasuredRows:
    """Rows to judge a controller by, measured as those that it was fitted to, and none of them; on its own model alone."""
    controller.check(model)
    require_unseen(controller, task, model)
    card, template = controller.card, resolve_template(task.template, tokenizer)
    if (template, task.max_prompt_tokens) != (card.template, card.max_prompt_tokens):
        raise InputError(
            f"The controller was fitted to prompts of template {card.template!r} cut to {card.max_prompt_tokens} tokens, "
            f"and these are of {template!r} cut to {task.max_prompt_tokens}: give the same template and max_prompt_tokens."
        )
    options: dict[str, Any] = {"batch_size": whole("batch_size", batch_size, 1), "progress": progress}
    options |= {"out": None if out is None else Path(out), "identity": identity or ModelIdentity.of(model)}
    return measure_rows(model, tokenizer, task, card, **options)


def require_unseen(controller: FittedController, task: Task, model: Any) -> None:
    """Refuse rows that the controller, the search for its routes, or the training of the model or its adapter has seen."""
    for purpose, used in controller.seen.items():
        require_apart(task, used, purpose)
    require_unsearched(task, model=model, can_allow=False)


def fit_rows(
    rows: MeasuredRows,
    card: ControllerCard,
    settings: FitSettings,
    keep: np.ndarray | None = None,
    groups: Sequence[slice] | None = None,
) -> FittedController:
    """The parts of a controller, from measured rows or those in `keep`.

    `card` says what it is for; its scores are filled in here.
    """
    kept = slice(None) if keep is None else keep
    tables = rows.values(card.metric, card.routes), rows.steps(card.routes), rows.features
    values, steps, features = (table[kept] for table in tables)
    mean_steps = float(steps[:, card.full].mean())
    if not mean_steps:
        raise InputError(
            "None of the full model's answers is longer than the one token that comes out of the prompt's pass: give other "
            "prompts, or more response_tokens."
        )
    known = ("ridge", "mlp", "trees") if find_spec("lightgbm") else ("ridge", "mlp")
    kinds = known if settings.predictor == AUTO else (settings.predictor,)
    options: dict[str, Any] = {"groups": groups or card.features.groups, "seed": settings.seed}
    kind, mse, predictions = choose_kind(features, values, kinds, n_folds=settings.n_folds, **options)
    # Shares of the most steps that there can be: one column where all routes are scored on one answer.
    shares = (steps[:, :1] if (steps == steps[:, :1]).all() else steps) / card.max_steps
    likely = cross_validated(kind, features, shares, n_folds=settings.n_folds, **options)
    quality = predictions[kind]
    calibration = Prediction(quality, likely_steps(likely, card.max_steps, values.shape[1]))
    scored = replace(
        card,
        mean_steps=mean_steps,
        r2=explained(quality, values),
        steps_r2=explained(likely, shares) * (len(card.routes) // shares.shape[1]),
        means=tuple(values.mean(axis=0).tolist()),
        fitted_on={**card.fitted_on, "cross_validated_mse": mse},
    )
    price = price_for_budget(quality, scored.costs_of(calibration.steps), scored.budget(settings.budget))
    qualities, steps = (fit_predictor(kind, features, table, **options) for table in (values, shares))
    return FittedController(scored, qualities, steps, calibration, price)


def route_costs(
    unit: str,
    session: Session,
    examples: Sequence[EncodedExample],
    routes: Sequence[Route],
    latency: Any = None,
) -> tuple[float, ...]:
    """What a decoding step costs on each route: layers, their share, FLOPs behind a prompt of median length, or ms.

    Args:
        latency: a latency model or its file, whose milliseconds are of whole steps; those measured here are the layers'.
    """
    if unit in (LAYER_STEPS, LAYERS):
        return tuple(len(route) / (len(session.full) if unit == LAYER_STEPS else 1) for route in routes)
    by_length = sorted(examples, key=lambda example: len(example.prompt_ids))
    median = by_length[len(by_length) // 2]
    if latency is not None:
        model = loaded_latency(latency, unit)
        model.require_fits(session.n_layers)
        return tuple(1e3 * model.route_sec(route, 1, len(median.prompt_ids)) for route in routes)
    costs = layer_ms(session, median) if unit == MS else layer_flops(session.model, len(median.prompt_ids))
    return tuple(float(costs.of(route)) for route in routes)


def unscored_card(
    session: Session,
    tokenizer: Any,
    task: Task,
    routes: tuple[Route, ...],
    settings: FitSettings,
    identity: ModelIdentity,
    costs: tuple[float, ...],
) -> ControllerCard:
    """The card of a fit before its rows are measured."""
    searched_on = sorted(frozenset().union(*(route.searched_on for route in routes)))
    return ControllerCard(
        model=identity.name,
        weights_hash=weights_hash(unwrap(session.given)),
        dtype=identity.dtype,
        n_layers=session.n_layers,
        routes=routes,
        metric=settings.metric,
        cost_unit=settings.cost,
        route_costs=costs,
        prompt_depth=settings.prompt_depth,
        features=FeatureSpec.of(session.n_layers, session.facts.width, routes, settings.prompt_depth),
        template=resolve_template(task.template, tokenizer),
        max_prompt_tokens=task.max_prompt_tokens,
        response_tokens=settings.response_tokens,
        mean_steps=float(max(settings.response_tokens - 1, 1)),
        r2=(None,) * len(routes),
        steps_r2=(None,) * len(routes),
        means=(0.0,) * len(routes),
        fitted_on={
            "task": task.name,
            "split": task.split,
            "source": task.source_fingerprint,
            "n_sequences": len(task.examples),
            "prompts": list(prompt_hashes(task)),
            **({"searched_on": searched_on} if searched_on else {}),
            **{name: getattr(settings, name) for name in ("seed", "n_folds", "batch_size")},
            **environment(),
        },
    )
