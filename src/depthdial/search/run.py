"""Training-free route search: which layers a model can best do without, by one of several methods, on calibration prompts.

Every method is a file of its own in this room, with its source; they share the calibration prompts, what a layer costs, and
the record that a family carries. Routes are for prompts at full depth (arXiv 2410.20022, section 3), or for prompts that run
the route too, as a saved folder runs them; a family says which.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from depthdial.checks import choice, whole
from depthdial.data.leakage import prompt_hashes, require_unsearched
from depthdial.data.tasks import Task, as_task
from depthdial.errors import InputError
from depthdial.files import check_out_file
from depthdial.hf.untouched import has_adapters_on
from depthdial.latency.model import LatencyModel
from depthdial.measure.latency import COSTS, LayerCosts, layer_flops, layer_ms, layers_alike
from depthdial.measure.plan import ModelIdentity, Plan, make_plan
from depthdial.measure.references import Reference
from depthdial.progress import progress_bar
from depthdial.provenance import digest, environment
from depthdial.routes import Route
from depthdial.routes.families import PROMPT_DEPTHS, RouteFamily
from depthdial.search.angular import Angular
from depthdial.search.beam import Beam
from depthdial.search.block_influence import BlockInfluence
from depthdial.search.calibration import METRICS, SPECULATION, Calibration
from depthdial.search.greedy import Greedy
from depthdial.search.knapspec import KnapSpec
from depthdial.search.method import Found, Harms, Memory, Method, Problem
from depthdial.search.single_drop import SingleDrop
from depthdial.search.speculation import DraftHarm

METHOD = "greedy-kl"  # the name of the family that a search finds when nothing else is asked for
_MAKERS: Mapping[str, Callable[..., Method]] = {
    "greedy": Greedy,
    "beam": Beam,
    "single-drop": SingleDrop,
    "block-influence": BlockInfluence,
    "angular": Angular,
    "knapspec": KnapSpec,
}
METHODS = tuple(_MAKERS)
_MEMBERS = ("name", "source", "metric", "pieces", "find")
_OPTIONS = {name: [option.name for option in fields(maker)] for name, maker in _MAKERS.items()}  # type: ignore[arg-type]
Screen = int | None | Literal["default"]

_METRIC_NAMES = {
    "kl": "KL(full || route), nats",
    "nll": "NLL of the references, nats",
    SPECULATION: "minus the logarithm of the expected speed-up of self-speculation",
}


def search_routes(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    method: str | Method = "greedy",
    metric: str | None = None,
    cost: str = "layers",
    prompt_depth: str = "full",
    min_layers: int | None = None,
    screen: Screen = "default",
    beam_width: int | None = None,
    nested: bool | None = None,
    answer_tokens: int = 16,
    batch_size: int = 16,
    out: Path | str | None = None,
    on_found: Callable[[RouteFamily], None] | None = None,
    identity: ModelIdentity | None = None,
    reference: Reference | None = None,
    progress: bool = False,
    allow_searched_rows: bool = False,
    latency: Any = None,
    harms: Harms | None = None,
) -> RouteFamily:
    """Find routes from the full model down to `min_layers` layers, one for each number of layers.

    In Python `method` is also a search of your own, an instance of `depthdial.search.method.Method`
    (docs/add-a-search-method.md).

    Nothing is drawn at random: the same prompts on the same machine give the same routes (but for `cost="ms"`).

    Args:
        task: calibration prompts; never those that routes are evaluated on. References are used for NLL only.
        method: `greedy` (default), `beam`, `single-drop`, `block-influence`, `angular` or `knapspec`.
        metric: of the first three: `kl` to the full model (default), `nll` of the references, or `speculation`, the expected
            speed-up of drafting on a route by the latency model.
        cost: what dropping a layer saves, against which its harm is weighed: `layers` (all alike), `flops` per token, or
            `ms`, measured here on every layer. It decides about routes only where layers differ.
        prompt_depth: `full` (the prompt runs every layer) or `route` (the tried route runs the prompt too, as a saved
            folder does). Of methods that try routes: the others look at the full model's states alone.
        min_layers: where to stop (default: half of the layers, rounded down).
        screen: of greedy and beam: layers tried in each round after the first (default: 8); None tries all that are left.
        beam_width: of beam: sets kept of each size (default: 4).
        nested: of beam: whether every route keeps the layers of the cheaper ones (default), or is the best of its size.
        answer_tokens: length of the full model's answers (or of the references) that routes are tried on.
        batch_size: sequences run together.
        out: the family file to write. A stopped search goes on from a file beside it.
        on_found: called with the family before it is written, so that it is not lost where it cannot be.
        reference: the model without its adapters, and what it has said to earlier callers.
        allow_searched_rows: also search on rows that the model or its adapter was trained on, where all routes look good.
        latency: a latency model, its bench.json or the folder of a bench. With cost ms it says what layers take, in place of
            measuring here; the metric speculation needs one.
        harms: what measures the harm of several routes at once, such as processes of a cluster, each with `harm_measure`.

    Returns:
        A family of `full` and one route for each number of layers, named METHOD-METRIC:LAYERS, or
        METHOD-METRIC-route:LAYERS with prompt_depth `route`; with what each layer matters, the harm of each route where the
        method measures it, costs, time and the calibration's record in `made_by`.

    Raises:
        InputError: for bad arguments, an option that the method does not know, a row without a reference where NLL is
            asked for, or a model whose numbers are not finite.

    Example:
        >>> family = dd.search_routes(model, tokenizer, task=task, method="angular", min_layers=3)
        >>> [len(route.layers) for route in family.routes]
        [3, 4, 5, 6]
    """
    given = {name: value for name, value in locals().items() if name not in _NOT_ASKED}
    if out is not None:
        check_out_file(Path(out))
    asked = _Asked.of(model, tokenizer, **given)
    chosen, plan = asked.chosen, asked.plan
    # What is kept of a stopped search has another form since beams and greedy share one: `states` tells them apart.
    settings = {**plan.run.settings, "batch_size": batch_size, "sequences": [e.id for e in plan.examples], "states": "sets"}
    memory = Memory.open(None if out is None else Path(f"{out}.unfinished"), settings)
    calibration = asked.calibration()
    memory.start_clock()
    # The KL of the full route is 0, except with adapters on, as the full model is then the untouched one.
    is_harmed = chosen.metric in ("nll", SPECULATION) or (chosen.metric == "kl" and has_adapters_on(model))
    harm = asked.harm(calibration)
    problem = Problem(
        plan.session.n_layers,
        asked.stop,
        _layer_costs(cost, plan, calibration, memory, asked.times),
        harm,
        harm(plan.session.full) if is_harmed else 0.0,
        calibration.states,
        len(calibration.batches),
        calibration.answer_states,
        harms,
    )
    with progress_bar("search", chosen.pieces(problem, memory), show=progress) as advance:
        found = chosen.find(problem, memory, advance)
    family = _family(asked, found, problem, calibration, memory)
    if on_found is not None:
        on_found(family)
    if out is not None:
        family.save(out)
        memory.clear()
    return family


_NOT_ASKED = ("model", "tokenizer", "out", "on_found", "progress", "harms")


def harm_measure(model: Any, tokenizer: Any, **options: Any) -> Callable[[Route], float]:
    """What measures the harm of a route as a search of these options does, in another process than that of the search.

    Args:
        options: of `search_routes`, but out, on_found, progress and harms.

    Raises:
        InputError: as `search_routes`.

    Example:
        >>> from depthdial.search.run import harm_measure
        >>> harm = harm_measure(model, tokenizer, task=task, answer_tokens=4)
        >>> harm(dd.Route((0, 1, 2, 3, 4, 5), 6))
        0.0
    """
    asked = _Asked.of(model, tokenizer, **options)
    return asked.harm(asked.calibration())


@dataclass(frozen=True)
class _Asked:
    """A search of some options, checked; nothing has run."""

    chosen: Method
    name: str
    task: Task
    times: LatencyModel | None
    reference: Reference
    plan: Plan
    stop: int
    answer_tokens: int
    batch_size: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **options: Any) -> _Asked:
        bound = inspect.signature(search_routes).bind(model, tokenizer, **options)
        bound.apply_defaults()
        given = SimpleNamespace(**bound.arguments)
        chosen = make_method(
            given.method, metric=given.metric, screen=given.screen, beam_width=given.beam_width, nested=given.nested
        )
        check_prompt_depth(given.prompt_depth, chosen)
        choice("cost", given.cost, COSTS)
        times = _latency(given.latency, chosen.metric, given.cost)
        for name in ("answer_tokens", "batch_size"):
            whole(name, getattr(given, name), 1)
        cost, answer_tokens = given.cost, given.answer_tokens
        name = chosen.name + "-route" * (given.prompt_depth == "route") + ("" if cost == "layers" else f"-{cost}")
        settings = {"kind": "search", "method": name, **vars(chosen), "cost": cost, "answer_tokens": answer_tokens}
        if times is not None:
            settings["latency"] = digest(asdict(times))
        task = as_task(given.task, held_out=True)
        if not given.allow_searched_rows:
            require_unsearched(task, model=model)
        reference = Reference.of(model, tokenizer, given.reference)
        plan = make_plan(
            model,
            tokenizer,
            task,
            ["full"],
            answer_tokens=answer_tokens,
            session=reference.session_of(model, tokenizer),
            prompt_depth=given.prompt_depth,
            identity=given.identity,
            settings=settings,
        )
        n_layers = plan.session.n_layers
        if times is not None:
            times.require_fits(n_layers)
        stop = n_layers // 2 if given.min_layers is None else whole("min_layers", given.min_layers, 1)
        if stop >= n_layers:
            raise InputError(f"The argument min_layers is {stop} but the model has {n_layers}: search down to fewer layers.")
        return cls(chosen, name, task, times, reference, plan, stop, answer_tokens, given.batch_size)

    def calibration(self) -> Calibration:
        """Run the prompts."""
        plan, metric = self.plan, self.chosen.metric
        return Calibration.of(
            plan.session,
            plan.examples,
            metric,
            self.answer_tokens,
            self.batch_size,
            self.reference,
            plan.asked.prompt_depth,
        )

    def harm(self, calibration: Calibration) -> Callable[[Route], float]:
        """What measures a route's harm on the calibration texts."""
        if self.chosen.metric != SPECULATION:
            return calibration.harm
        assert self.times is not None
        return DraftHarm(calibration, self.times, not has_adapters_on(self.plan.session.given))


def make_method(method: str | Method, **given: Any) -> Method:
    """The search that a name and options stand for; `given` are `search_routes`'s, None or "default" where not given.

    Raises:
        InputError: for an unknown method or metric, a bad number, or an option of another method.
    """
    options = {name: value for name, value in given.items() if value != ("default" if name == "screen" else None)}
    if not isinstance(method, str):
        return _own_method(method, options)
    choice("search method", method, METHODS)
    for name in options:
        if name not in _OPTIONS[method]:
            users = " and ".join(user for user, known in _OPTIONS.items() if name in known)
            raise InputError(f"{name} is an option of {users} and not of {method}: leave it out, or search by {users}.")
    if "metric" in options:
        choice("search metric", options["metric"], METRICS)
    for name in ("screen", "beam_width"):
        if options.get(name) is not None:
            whole(name, options[name], 1)
    return _MAKERS[method](**options)


def _own_method(method: Any, options: Mapping[str, Any]) -> Method:
    """A method that a caller wrote, checked; its options are its own fields."""
    missing = [name for name in _MEMBERS if not hasattr(method, name)]
    if missing or not is_dataclass(method) or isinstance(method, type):
        lacks = f"lacks {missing[0]}" if missing else "is no instance of a dataclass"
        raise InputError(
            f"The search method {method!r} {lacks}: give a name, or a method as in docs/add-a-search-method.md."
        )
    if options:
        raise InputError(f"{next(iter(options))} is given beside a method of your own: make it a field of the method.")
    if method.metric is not None:
        choice("search metric", method.metric, METRICS)
    return method


def check_prompt_depth(prompt_depth: str, method: Method) -> None:
    """InputError for an unknown prompt depth, or one that a method cannot aim at."""
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    if prompt_depth == "route" and method.metric is None:
        raise InputError(
            f"The search by {method.name} looks at hidden states behind prompts at full depth, whatever routes are for: "
            "leave prompt_depth out, or search by greedy."
        )
    if prompt_depth == "route" and method.metric == SPECULATION:
        raise InputError(
            "The metric 'speculation' is for drafts, whose prompts run every layer: leave prompt_depth out, or search by kl."
        )


def options_of(name: str) -> dict[str, Any]:
    """`search_routes`'s options for a family's name: `greedy`, `greedy-nll`, `beam-kl-each`, `block-influence`, ..

    Raises:
        InputError: if no search is called so.
    """
    known: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS}
    with_metric = [method for method in METHODS if "metric" in _OPTIONS[method]]
    known |= {f"{method}-{metric}": {"method": method, "metric": metric} for method in with_metric for metric in METRICS}
    known |= {f"{one}-each": {**options, "nested": False} for one, options in known.items() if options["method"] == "beam"}
    if name not in known:
        some = "greedy-kl, greedy-nll, beam-kl, beam-kl-each, single-drop-kl, block-influence, angular or knapspec"
        raise InputError(f"No search is called {name!r}: use {some}.")
    return known[name]


def family_name(name: str) -> str:
    """The name in full: `greedy` is `greedy-kl`."""
    return make_method(**options_of(name)).name


def _latency(given: Any, metric: str | None, cost: str) -> LatencyModel | None:
    """The latency model of a search that is to use one; InputError where one is missing, or of no use."""
    if metric == SPECULATION and cost != "layers":
        raise InputError(f"The metric 'speculation' counts time by itself, and the cost is {cost!r}: leave cost out.")
    if given is None:
        if metric == SPECULATION:
            raise InputError("The metric 'speculation' needs measured times: give latency='bench.json', of depthdial bench.")
        return None
    if metric != SPECULATION and cost != "ms":
        raise InputError(f"A latency model is for cost='ms' or metric='speculation', not for cost={cost!r}: leave it out.")
    return given if isinstance(given, LatencyModel) else LatencyModel.load(given)


def _layer_costs(cost: str, plan: Plan, calibration: Calibration, memory: Memory, times: LatencyModel | None) -> LayerCosts:
    if cost == "layers":
        return layers_alike(plan.session.n_layers)
    if cost == "flops":
        return layer_flops(plan.session.model, calibration.context_tokens)
    if times is not None:
        return times.layer_costs(context_tokens=calibration.context_tokens)
    if memory.layer_costs is not None:
        return LayerCosts("ms", tuple(memory.layer_costs), {"measured": "before the search was stopped"})
    measured = layer_ms(plan.session, plan.examples[0])
    memory.layer_costs = list(measured.by_layer)
    memory.save()
    return measured


def _family(asked: _Asked, found: Found, problem: Problem, calibration: Calibration, memory: Memory) -> RouteFamily:
    name, chosen, task, plan, n = asked.name, asked.chosen, asked.task, asked.plan, problem.n_layers
    routes = [Route(tuple(range(n)), n, "full")]
    for route in map(problem.without, found.dropped):
        routes.append(Route(route.layers, n, f"{name}:{len(route.layers)}"))
    made_by = {
        "method": name,
        "source": chosen.source,
        **({} if chosen.metric is None else {"metric": _METRIC_NAMES[chosen.metric]}),
        "nested": found.is_nested,
        **({"drop_order": list(found.dropped[-1])} if found.is_nested else {}),
        **({} if found.harm is None else {str(chosen.metric): list(found.harm)}),
        **(problem.harm.record(routes[1:], found.harm or ()) if isinstance(problem.harm, DraftHarm) else {}),
        "importance": list(found.importance),
        "calibration": {
            "task": task.name,
            "split": task.split,
            "seed": task.seed,
            "n_sequences": calibration.n_sequences,
            "n_tokens": calibration.n_tokens,
            "n_prompt_tokens": calibration.n_prompt_tokens,
            "seconds": calibration.seconds,
        },
        "prompts": list(prompt_hashes(task)),
        "settings": dict(plan.run.settings),
        "passes": found.passes,
        "seconds": memory.search_sec,
        **environment(),
        "cost": problem.costs.record(routes),
    }
    prompt_depth = None if chosen.metric is None else plan.asked.prompt_depth
    return RouteFamily(name, n, tuple(reversed(routes)), made_by, prompt_depth)
