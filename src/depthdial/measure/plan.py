"""Start of every measurement: sequences encoded, routes parsed and fitted to the model, settings recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthdial.checks import choice
from depthdial.data.leakage import require_unsearched
from depthdial.data.tasks import EncodedExample, Task, encode
from depthdial.data.templates import resolve_template
from depthdial.engine.depth import Asked, Depth, read_depths
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.adapter import adapter_card
from depthdial.hf.architectures import unwrap
from depthdial.hf.ends import configured_ends
from depthdial.hf.facts import ModelFacts
from depthdial.hf.untouched import has_adapters_on
from depthdial.hf.weights import weights_hash
from depthdial.provenance import digest
from depthdial.routes import require_depth
from depthdial.routes.families import distinct_routes, listed_routes
from depthdial.rows.store import RunSettings, UnitStore, unit_name
from depthdial.views.passes import PROMPT_DEPTHS
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import TokenPolicy

# What is measured: routes, random rules, token-wise depths, controllers, each by itself, by its text or folder, or several.
Routes = Any


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
        depths: without repetition, in the order given.
        asked: how prompts run.
        run: the settings, by which rows of different runs are kept apart.
    """

    session: Session
    examples: tuple[EncodedExample, ...]
    depths: tuple[Depth, ...]
    asked: Asked
    run: RunSettings

    def unit(self, batch: Sequence[EncodedExample], depth: Any) -> str:
        """The name of the rows of one batch at one depth."""
        # The layers are in the key: a route file may call other layers by the same name tomorrow.
        return unit_name([example.id for example in batch], f"{depth.name} {depth}")

    def units(self, batches: Iterable[Sequence[EncodedExample]]) -> list[str]:
        """All units, depth by depth."""
        batches = list(batches)
        return [self.unit(batch, depth) for depth in self.depths for batch in batches]

    def missing(self, store: UnitStore, batch: Sequence[EncodedExample]) -> list[Depth]:
        """The depths that a batch has yet to run at."""
        return [depth for depth in self.depths if not store.has(self.unit(batch, depth))]


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
    allow_searched_rows: bool | None = None,
    session: Session | None = None,
) -> Plan:
    """Check everything that can be checked before the first pass.

    Args:
        answer_tokens: the longest text that is generated behind a prompt.
        allow_searched_rows: whether rows may be measured that the depths or the model have seen; None where the plan's
            depths are not run at all.
        session: of the model, where the caller has one.

    Raises:
        InputError: for a route that does not fit, a prompt that does not fit the context, or an unknown prompt depth.

    Warns:
        RouteWarning: for a route that the model's adapter was not trained for.
    """
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    session = session or Session.of(model, tokenizer)
    identity = identity or ModelIdentity.of(model)
    examples = tuple(encode(task, tokenizer, context_tokens=session.context_tokens))
    asked = Asked(prompt_depth, resolve_template(task.template, tokenizer))
    about_task = {
        "task": task.name,
        "split": task.split,
        "template": asked.template,
        # A chat template may print the date, or change with the tokenizer: rows of other prompts must not mix.
        "first_prompt": digest({"ids": examples[0].prompt_ids}),
        "seed": task.seed,
        "source": task.source_fingerprint,
        "max_prompt_tokens": task.max_prompt_tokens,
        "max_response_tokens": task.max_response_tokens,
    }
    about_model = {"model": identity.name, **{k: v for k, v in vars(identity).items() if k != "name"}}
    parsed = unique_routes(routes, session.n_layers, model)
    context = session.context_tokens
    if context is not None and any(len(example.prompt_ids) + answer_tokens > context for example in examples):
        # Rows from before each sequence had a room of its own were cut to that of the batch's longest prompt.
        settings = {**settings, "room": "of each sequence"}
    if session.eos_token_ids != configured_ends(model, tokenizer):
        # Rows from before did not end with the chat template's token.
        settings = {**settings, "ends": list(session.eos_token_ids)}
    if allow_searched_rows is False:
        require_unsearched(task, parsed, model)
    depths = tuple(Depth.parse(one, model) for one in parsed)
    for depth in depths if allow_searched_rows is not None else ():
        depth.prepare(session, asked)
    run = RunSettings({**about_model, **about_task, "prompt_depth": prompt_depth, **settings})
    return Plan(session, examples, depths, asked, run)


def unique_routes(routes: Routes, n_layers: int, model: Any = None) -> tuple[Any, ...]:
    """Routes parsed and checked; of two with the same layers the first is kept, under its name.

    Args:
        model: on which a share or a count of layers means a route, and a folder a controller; without one they mean none.
    """
    given = listed_routes(routes, n_layers) if model is None else read_depths(routes, model, n_layers)
    policy = next((route for route in given if isinstance(route, TokenPolicy)), None)
    if policy is not None:
        raise InputError(f"A policy is measured as TokenDepth(policy, n_layers={n_layers}): wrap {policy.name!r} so.")
    kept = distinct_routes(require_depth(route, n_layers) for route in given)
    if not kept:
        raise InputError("No route was given: name at least one, such as full or uls:50%.")
    names = [route.name for route in kept]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"Two different routes are called {twice!r}: give each its own name.")
    return kept


def route_columns(route: Running, name: str) -> dict[str, Any]:
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
