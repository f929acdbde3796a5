"""Start of every measurement: sequences encoded, routes parsed and fitted to the model, settings recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from depthdial.checks import choice
from depthdial.data.tasks import EncodedExample, Task, encode
from depthdial.data.templates import resolve_template
from depthdial.engine.depth import read_depths
from depthdial.engine.session import Runner
from depthdial.errors import InputError
from depthdial.hf.adapter import adapter_card
from depthdial.hf.architectures import unwrap
from depthdial.hf.ends import configured_ends
from depthdial.hf.facts import ModelFacts
from depthdial.hf.untouched import has_adapters_on
from depthdial.hf.weights import weights_hash
from depthdial.provenance import digest
from depthdial.routes import AnyRoute, require_depth
from depthdial.routes.families import RouteFamily, distinct_routes, listed_routes
from depthdial.rows.store import RunSettings, UnitStore, unit_name
from depthdial.views.passes import PROMPT_DEPTHS, PromptDepth
from depthdial.views.tokens.depth import Depth, TokenDepth
from depthdial.views.tokens.policy import TokenPolicy

# What a measurement may run at: one route, a rule that draws one a sequence, or a policy that decides by token.
AnyDepth = AnyRoute | TokenDepth
# How several of them are given, or one.
Routes = AnyDepth | str | PathLike[str] | RouteFamily | Iterable[AnyDepth | str | Sequence[int]]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model, exactly: its name, the SHA-256 of its weights, and how it is held."""

    name: str
    weights_hash: str
    dtype: str
    device: str
    attention: str

    @classmethod
    def of(cls, model: Any, name: str | None = None) -> ModelIdentity:
        """Identify a model; `name` is what it was loaded by (its folder or id otherwise). Reads all weights once.

        A model with adapters on is called `name + elastic` (or `specialist`, or `adapter` where there is no card).
        """
        base, facts = unwrap(model), ModelFacts.of(model)
        return cls(
            (name or facts.name) + _adapter_suffix(model),
            weights_hash(model),
            str(base.dtype).removeprefix("torch."),
            base.device.type,
            str(facts.attention),
        )


@dataclass(frozen=True)
class Plan:
    """One measurement, ready to run.

    Attributes:
        examples: encoded sequences in the task's order.
        routes: routes, random rules and token-wise depths without repetition, in the order given.
        run: the settings, by which rows of different runs are kept apart.
    """

    runner: Runner
    examples: tuple[EncodedExample, ...]
    routes: tuple[AnyDepth, ...]
    prompt_depth: PromptDepth
    run: RunSettings

    def unit(self, batch: Sequence[EncodedExample], route: AnyDepth) -> str:
        """The name of the rows of one batch on one route."""
        # The layers are in the key: a route file may call other layers by the same name tomorrow.
        return unit_name([example.id for example in batch], f"{route.name} {route}")

    def units(self, batches: Iterable[Sequence[EncodedExample]]) -> list[str]:
        """All units, route by route."""
        batches = list(batches)
        return [self.unit(batch, route) for route in self.routes for batch in batches]

    def missing(self, store: UnitStore, batch: Sequence[EncodedExample]) -> list[AnyDepth]:
        """The routes that a batch has yet to run."""
        return [route for route in self.routes if not store.has(self.unit(batch, route))]


def make_plan(
    model: Any,
    tokenizer: Any,
    task: Task,
    routes: Routes,
    *,
    prompt_depth: str,
    identity: ModelIdentity | None,
    settings: Mapping[str, Any],
    answer_tokens: int = 0,
) -> Plan:
    """Check everything that can be checked before the first pass.

    Args:
        answer_tokens: the longest text that is generated behind a prompt.

    Raises:
        InputError: for a route that does not fit, a prompt that does not fit the context, or an unknown prompt depth.
    """
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    runner = Runner.of(model, tokenizer)
    identity = identity or ModelIdentity.of(model)
    examples = tuple(encode(task, tokenizer, context_tokens=runner.context_tokens))
    about_task = {
        "task": task.name,
        "split": task.split,
        "template": resolve_template(task.template, tokenizer),
        # A chat template may print the date, or change with the tokenizer: rows of other prompts must not mix.
        "first_prompt": digest({"ids": examples[0].prompt_ids}),
        "seed": task.seed,
        "source": task.source_fingerprint,
        "max_prompt_tokens": task.max_prompt_tokens,
        "max_response_tokens": task.max_response_tokens,
    }
    about_model = {"model": identity.name, **{k: v for k, v in vars(identity).items() if k != "name"}}
    parsed = unique_routes(routes, runner.n_layers, model)
    _check_token_depths(model, parsed, prompt_depth)
    context = runner.context_tokens
    if context is not None and any(len(example.prompt_ids) + answer_tokens > context for example in examples):
        # Rows from before each sequence had a room of its own were cut to that of the batch's longest prompt.
        settings = {**settings, "room": "of each sequence"}
    if runner.eos_token_ids != configured_ends(model, tokenizer):
        # Rows from before did not end with the chat template's token.
        settings = {**settings, "ends": list(runner.eos_token_ids)}
    run = RunSettings({**about_model, **about_task, "prompt_depth": prompt_depth, **settings})
    return Plan(runner, examples, parsed, prompt_depth, run)  # type: ignore[arg-type]


def _check_token_depths(model: Any, depths: Sequence[AnyDepth], prompt_depth: str) -> None:
    token_wise = [depth for depth in depths if isinstance(depth, TokenDepth)]
    if token_wise and prompt_depth != "full":
        raise InputError("Token-wise depths are measured behind prompts that run every layer: use prompt_depth='full'.")
    for depth in token_wise:
        depth.view(model)  # refuses what does not fit, before anything has run


def unique_routes(routes: Routes, n_layers: int, model: Any = None) -> tuple[AnyDepth, ...]:
    """Routes parsed and checked; of two with the same layers the first is kept, under its name.

    Args:
        model: on which a share or a count of layers means a route; without one they mean none.
    """
    given = listed_routes(routes, n_layers) if model is None else read_depths(routes, model, n_layers)
    policy = next((route for route in given if isinstance(route, TokenPolicy)), None)
    if policy is not None:
        raise InputError(f"A policy is measured as TokenDepth(policy, n_layers={n_layers}): wrap {policy.name!r} so.")
    kept: tuple[AnyDepth, ...] = distinct_routes(require_depth(route, n_layers) for route in given)
    if not kept:
        raise InputError("No route was given: name at least one, such as full or uls:50%.")
    names = [route.name for route in kept]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"Two different routes are called {twice!r}: give each its own name.")
    return kept


def route_columns(route: Depth, name: str) -> dict[str, Any]:
    """The columns of a row that say which route ran; a token-wise depth has no cost before it has."""
    if isinstance(route, TokenDepth):
        return {"route": name, "route_layers": str(route), "n_layers": route.n_layers}
    return {
        "route": name,
        "route_layers": str(route),
        "n_layers": route.n_layers,
        "layers_run": route.cost_layers,
        "cost": route.cost,
    }


def _adapter_suffix(model: Any) -> str:
    card = adapter_card(model)
    return f" + {card.kind if card else 'adapter'}" if has_adapters_on(model) else ""


def cut(tokens: Sequence[int], most: int | None) -> tuple[int, ...]:
    return tuple(tokens if most is None else tokens[:most])
