"""The whole per-sequence study of one model in one folder: search, similarity, sweep, time, oracle, controller, report.

The pipeline of arXiv 2410.20022 (sections 3 and 4) end to end, and with rows to learn from the controller that the paper
leaves open. Every step leaves its result in the folder and goes on from there when it is started again, so a study that was
stopped at any moment is simply started again.

A room of its own, between the command line and the others: it calls all of them and none calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from depthdial.checks import number, share, whole
from depthdial.data.leakage import prompt_hashes, require_apart, require_unsearched
from depthdial.data.tasks import Task, as_task, encode
from depthdial.engine.depth import read_depths
from depthdial.errors import InputError
from depthdial.files import claim, read_json, write_json
from depthdial.hf.adapter import AdapterCard, adapter_card
from depthdial.hf.architectures import count_layers
from depthdial.hf.prompts import both_prompt_depths
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.references import KEPT_BYTES, Reference
from depthdial.measure.similarity import similarity
from depthdial.measure.sweep import sweep
from depthdial.measure.timing import TIMING_FILE, time_study
from depthdial.oracles.costs import LAYER_STEPS, TOKENS_COLUMN, counted_columns
from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.controller.scores import ControllerScores, keep_scores
from depthdial.report.pages import write_report
from depthdial.report.study.verdict import KEEP, Verdict, decide
from depthdial.routes import AnyRoute, Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import STUDY_SWEEPS, count_samples, load_study_rows
from depthdial.search.run import METHOD, search_routes
from depthdial.stats.intervals import mean_over_samples
from depthdial.studies.controller import EvaluationSettings
from depthdial.studies.study_controller import JUDGED, claim_controller, fit_and_judge, require_rows

# Fractions of the layers at which a study looks when it is not told: where untouched models still answer, and below.
SEARCHED_COSTS = (0.94, 0.87, 0.8, 0.7, 0.6)
BASELINE_COSTS = (0.8,)
SIMILARITY_COSTS = (0.25, 0.5, 0.75, 0.9)
SIMILARITY_FAMILIES = ("ee", "uls", "rls", "rls-wo1")


@dataclass(frozen=True)
class StudySettings:
    """How large a study is.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        batch_size: sequences run together.
        similarity_sequences: number of the task's first sequences that are used for hidden-state similarity.
        min_layers_fraction: the search stops at this fraction of the layers.
        routes: texts of routes to sweep beside the searched ones; empty for full, ULS and early exit at 80%.
        fidelity_tokens: see `sweep`.
        screen, search_tokens: see `search_routes`.
        prompt_depth: full (the prompt runs every layer) or route; the search aims at the same.
        keep_text: keep the answers in the rows.
    """

    max_new_tokens: int = 48
    batch_size: int = 32
    similarity_sequences: int = 16
    similarity_tokens: int = 48
    min_layers_fraction: float = 0.6
    routes: tuple[str, ...] = ()
    fidelity_tokens: int = 24
    screen: int = 4
    search_tokens: int = 12
    prompt_depth: str = "full"
    keep_text: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_new_tokens",
            "batch_size",
            "similarity_sequences",
            "similarity_tokens",
            "fidelity_tokens",
            "screen",
            "search_tokens",
        ):
            whole(name, getattr(self, name), 1)
        number("min_layers_fraction", self.min_layers_fraction, above=0, below=1)


@dataclass(frozen=True)
class StudyResult:
    """What a study leaves: the report's path, the sweep's rows, oracles by metric, times, verdict, a controller's scores."""

    report: Path
    rows: Any
    oracles: dict[str, OracleCurve]
    timing: dict[str, Any]
    verdict: Verdict
    controller: ControllerScores | None = None


def study(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    calibration: Task,
    out: Path | str,
    settings: StudySettings | None = None,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
    adapted: Any = None,
    controller_rows: Task | None = None,
    evaluation: EvaluationSettings = JUDGED,
    keep: float = KEEP,
) -> StudyResult:
    """Search routes, measure them, fit and judge a controller if there are rows for one, and write the report.

    Args:
        model: the untouched full model.
        adapted: the same model with an adapter on, as `dd.load(name, adapter=...)` gives it: the routes that the adapter was
            trained for are measured beside the untouched model's, as `elastic:24` and so on.
        task: sequences to evaluate on.
        calibration: sequences to search routes on; none of `task`'s.
        say: called with one line at the start of each step.
        controller_rows: train rows to fit a controller on, none of `task`'s nor `calibration`'s; None for no controller. It
            chooses among the adapter's routes and the untouched full model, or without one among the searched routes.
        keep: the share of the full model's quality that the verdict asks routes to keep.
        evaluation: how the controller is judged on `task`. Its batches are as large as the study's, and budgets below the
            cheapest route are left out.

    Raises:
        InputError: if the tasks share a sequence, there are too few rows for a controller, `out` belongs to another study,
            or from any step.

    Example:
        >>> result = dd.study(model, tokenizer, task=task, calibration=many, out=folder / "study")
        >>> result.report.name
        'report.html'
    """
    share("keep", keep)
    settings, folder, say = settings or StudySettings(), Path(out), say or (lambda line: None)
    task, calibration = as_task(task), as_task(calibration, held_out=True)
    require_apart(task, prompt_hashes(calibration), "to search the routes")
    if controller_rows is not None:
        require_rows(task, calibration, controller_rows)
    n_layers = count_layers(model)
    card = _card_of(adapted, n_layers)
    own_routes = [] if card is None else adapter_routes(card)
    whole = model if adapted is None else adapted
    given = [route for text in settings.routes for route in read_depths(text, model, n_layers)] or baselines(n_layers)
    require_unsearched(task, [*given, *own_routes], whole, can_allow=False)
    if controller_rows is not None:
        require_unsearched(controller_rows, own_routes, whole, can_allow=False)
    identity = ModelIdentity.of(model, name)
    with_adapter = None if adapted is None else ModelIdentity.of(adapted, name)
    _claim(folder, settings, identity, task, None if with_adapter is None else with_adapter.weights_hash)
    if controller_rows is not None:
        claim_controller(folder / "controller", controller_rows, evaluation)
    # What the full model says to a batch of prompts is made once for all steps, and for the adapter's own full model.
    reference = Reference.of(model, tokenizer, keep_bytes=KEPT_BYTES)
    common = {"identity": identity, "reference": reference, "progress": progress}
    n_steps = 6 if controller_rows is None else 7

    say(f"1/{n_steps} search: nested routes of {n_layers} layers on {len(calibration.examples)} calibration prompts")
    family = _family(model, tokenizer, calibration, folder, settings, n_layers, common)
    require_unsearched(task, family.routes, can_allow=False)  # it may be of an earlier start, on other prompts
    say(f"2/{n_steps} similarity: hidden states of early exit and layer skipping against the full model's")
    with both_prompt_depths():  # states are compared behind full prompts, whichever prompts the search was for
        similarity(
            model,
            tokenizer,
            task=replace(task, examples=task.examples[: settings.similarity_sequences]),
            routes=similarity_routes(family, n_layers),
            out=folder / "similarity",
            batch_size=min(settings.batch_size, 16),
            max_response_tokens=settings.similarity_tokens,
            fidelity_tokens=settings.fidelity_tokens,
            **common,
        )
    routes = sweep_routes(family, n_layers, given, [len(route) for route in own_routes])
    say(f"3/{n_steps} sweep: {len(task.examples)} sequences x {len(routes) + len(own_routes)} routes")
    options = {
        "task": task,
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "fidelity_tokens": settings.fidelity_tokens,
        "prompt_depth": settings.prompt_depth,
        "keep_text": settings.keep_text,
        "progress": progress,
    }
    sweep(model, tokenizer, routes=routes, out=folder / STUDY_SWEEPS[0], identity=identity, reference=reference, **options)
    if card is not None:
        is_same = (card.base_weights_hash, card.base_dtype) == (identity.weights_hash, identity.dtype)
        options["reference"] = reference if is_same else None
        sweep(adapted, tokenizer, routes=own_routes, out=folder / STUDY_SWEEPS[1], identity=with_adapter, **options)
    del reference, common, options  # their memory
    rows = load_study_rows(folder)
    say(f"4/{n_steps} time: prompts and decoding steps of every route, apart from its quality")
    timed = [(model, [route for route in routes if isinstance(route, Route)]), (adapted, own_routes)]
    prompts = [example.prompt_ids for example in encode(task, tokenizer)]
    time_study([part for part in timed if part[1]], tokenizer, prompts, folder, prompt_depth=settings.prompt_depth)
    say(f"5/{n_steps} oracle: the best depth for every sequence under a global budget")
    oracles = run_oracles(rows, folder)
    scores = None
    if controller_rows is not None:
        say(f"6/{n_steps} controller: fitted on {len(controller_rows.examples)} sequences, judged on {len(task.examples)}")
        scores = fit_and_judge(
            whole,
            tokenizer,
            routes=own_routes or searched_routes(family, n_layers),
            rows=controller_rows,
            task=task,
            out=folder / "controller",
            evaluation=replace(evaluation, batch_size=settings.batch_size),
            prompt_depth=settings.prompt_depth,
            response_tokens=settings.max_new_tokens,
            name=name,
            progress=progress,
        )
        keep_scores(folder, scores)
    say(f"{n_steps}/{n_steps} report")
    timing = read_json(folder / TIMING_FILE, "timing")
    verdict = decide(rows, keep, settings.prompt_depth, timing)
    return StudyResult(write_report(folder, keep=keep), rows, oracles, timing, verdict, scores)


def run_oracles(rows: Any, folder: Path, metrics: Sequence[str] = ("rouge_l", "agreement")) -> dict[str, OracleCurve]:
    """The oracle by layer-steps on every metric that all rows have, kept in `folder`'s `oracle.json`."""
    have = [metric for metric in metrics if rows.column(metric).null_count == 0]
    if not have:
        raise InputError(f"No row has all of {', '.join(metrics)}: sweep with one of these metrics first.")
    curves = {metric: oracle(rows, metric=metric) for metric in have}
    for curve in curves.values():
        keep_oracle(folder, curve)
    return curves


def keep_oracle(folder: Path, curve: OracleCurve, weight_by: str | None = None) -> Path:
    """Put a curve beside the others of a folder, under its metric, and what it spends where that is not layer-steps."""
    of_tokens = ", mean weighted by tokens" if curve.quality == "tokens" else ""
    return _keep(folder / "oracle.json", curve, ("" if weight_by is None else f", weighted by {weight_by}") + of_tokens)


def keep_predictable(folder: Path, curve: PredictableCurve) -> Path:
    """The same for a predictable oracle, in a file of its own."""
    return _keep(folder / "predictable.json", curve)


def one_row_each(rows: Any, *columns: str) -> Any:
    """Rows as an oracle takes them: of sampled answers the means of `columns`, for each (sequence, route)."""
    if not count_samples(rows):
        return rows
    named = dict.fromkeys(("sequence_id", "route", *columns, *counted_columns()))
    wanted = {name: rows.column(name).to_numpy() for name in named if name in rows.column_names}
    if TOKENS_COLUMN in wanted:  # steps are tokens but for the first: an empty answer takes as few as one of a token
        wanted[TOKENS_COLUMN] = wanted[TOKENS_COLUMN].clip(1)
    return mean_over_samples(wanted)


def _keep(path: Path, curve: OracleCurve | PredictableCurve, suffix: str = "") -> Path:
    curves = read_json(path, "oracle") if path.exists() else {}
    name = curve.metric if curve.cost == LAYER_STEPS else f"{curve.metric} by {curve.cost}"
    curves[name + suffix] = curve.to_dict()
    return write_json(path, curves)


def sweep_routes(
    family: RouteFamily, n_layers: int, given: Sequence[AnyRoute] = (), counts: Sequence[int] = ()
) -> list[AnyRoute]:
    """The full model, ULS and early exit (or `given`), and the searched routes of `counts` layers (or at SEARCHED_COSTS)."""
    full = Route.parse("full", n_layers)
    return list(dict.fromkeys([full, *(given or baselines(n_layers)), *searched_routes(family, n_layers, counts)]))


def searched_routes(family: RouteFamily, n_layers: int, counts: Sequence[int] = ()) -> list[Route]:
    """The routes of a family with `counts` layers, or at SEARCHED_COSTS where none are given; not the full one."""
    by_cost = {len(route): route for route in family.routes if isinstance(route, Route) and not route.is_full}
    wanted = counts or [round(cost * n_layers) for cost in SEARCHED_COSTS]
    return list(dict.fromkeys(by_cost[count] for count in wanted if count in by_cost))


def adapter_routes(card: AdapterCard) -> list[Route]:
    """The routes of an adapter that skip layers, costliest first, under names that say whose they are: `elastic:24`."""
    shallow = sorted((route for route in card.routes if not route.is_full), key=len, reverse=True)
    counts = [len(route) for route in shallow]
    # Of two routes with as many layers each keeps its own name.
    names = [f"{card.kind}:{len(r) if counts.count(len(r)) == 1 else r.name}" for r in shallow]
    return [replace(route, name=name) for name, route in zip(names, shallow, strict=True)]


def _card_of(adapted: Any, n_layers: int) -> AdapterCard | None:
    if adapted is None:
        return None
    card = adapter_card(adapted)
    if card is None or card.n_layers != n_layers or all(route.is_full for route in card.routes):
        raise InputError(
            "The adapted model names no routes that skip layers of this one: load it with an adapter that "
            "`depthdial finetune` made for this model."
        )
    return card


def baselines(n_layers: int) -> list[AnyRoute]:
    return [Route.parse(f"{kind}:{100 * cost:g}%", n_layers) for kind in ("uls", "ee") for cost in BASELINE_COSTS]


def similarity_routes(family: RouteFamily, n_layers: int) -> list[AnyRoute]:
    """The full model, early exit and the three kinds of layer skipping at SIMILARITY_COSTS, and the searched family."""
    costs = sorted({len(Route.parse(f"uls:{100 * cost:g}%", n_layers)) for cost in SIMILARITY_COSTS})
    routes: list[AnyRoute] = [Route.parse(f"{kind}:{c}", n_layers) for kind in SIMILARITY_FAMILIES for c in costs]
    searched = [route for route in family.routes if route.is_full or route.cost_layers in costs]
    return list(dict.fromkeys([*searched, *routes]))


def _family(
    model: Any,
    tokenizer: Any,
    calibration: Task,
    folder: Path,
    settings: StudySettings,
    n_layers: int,
    common: dict[str, Any],
) -> RouteFamily:
    path = folder / "routes.json"
    if path.exists():
        return RouteFamily.load(path)
    return search_routes(
        model,
        tokenizer,
        task=calibration,
        min_layers=max(1, round(settings.min_layers_fraction * n_layers)),
        screen=settings.screen,
        answer_tokens=settings.search_tokens,
        prompt_depth=settings.prompt_depth,
        batch_size=settings.batch_size,
        out=path,
        allow_searched_rows=True,  # what the model was trained on may not judge, which it is not for here
        **common,
    )


def _claim(folder: Path, settings: StudySettings, identity: ModelIdentity, task: Task, adapted_hash: str | None) -> None:
    """Write down what the study is, or refuse a folder that holds another one."""
    about = {
        **asdict(settings),
        **asdict(identity),
        "routes": list(settings.routes),
        "task": task.name,
        "split": task.split,
        "sequences": len(task.examples),
        "method": METHOD,
        **({} if adapted_hash is None else {"adapted_weights_hash": adapted_hash}),
    }
    claim(folder / "study.json", about, "study")
