"""The verbs that train."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli.console import print_table, prompt_words, say_next
from depthdial.cli.options import DataOptions, Limit, ModelOptions, OutFolder, with_bundles
from depthdial.cli.settings import Given, options_of, pairs_of
from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.routes import AnyRoute, Route


_SHOWN_STEPS = 10  # of trained gates, in the mean
_R = {"r": ("--r", "--rank")}
_RUN, _GATES = "train.depth.settings:FinetuneSettings", "train.gates.settings:GateSettings"
_MINUTES = ("max_minutes", "save_minutes")
_OFTEN = ("r", "learning_rate", "batch_size", "max_tokens", "epochs")
# What a family's routes alone have.
_OF_ROUTES = ("prompt_gradient", "temperature", "routes_per_step", "ends_every", "emphasis", "weights_dtype")

TrainOptions = options_of(_RUN, "Training", common=("method", *_OFTEN, "max_minutes"), skip=("distill",), names=_R)
GateRunOptions = options_of(_RUN, "Training", common=_OFTEN, skip=("method", *_OF_ROUTES, *_MINUTES), names=_R)
GateOptions = options_of(_GATES, "Gates", common=("target", "alpha", "input", "backbone"), skip=("run",))
Trainer = Annotated[
    str | None,
    typer.Option(help="Fields of TrainingArguments: report_to=tensorboard,bf16=true", rich_help_panel="Training"),
]
Distill = Annotated[
    bool | None,
    typer.Option(help="Learn the full model's predictions; default: with --elastic.", rich_help_panel="Training"),
]


@with_bundles
def finetune(
    loading: ModelOptions,
    out: OutFolder,
    source: DataOptions,
    training: Annotated[Given, TrainOptions],
    route: Annotated[str | None, typer.Option("--depth", "--route", help="Train one route: a specialist.")] = None,
    elastic: Annotated[str | None, typer.Option(help="Train one set of weights for a family: a file, or routes.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only the family's routes of so many layers: 30,24,15")] = None,
    start_from: Annotated[str | None, typer.Option(help="Train on from an adapter's folder, or elastic.")] = None,
    distill: Distill = None,
    trainer: Trainer = None,
    limit: Limit = None,
) -> None:
    """Fine-tune for depth: a specialist for one route, or one elastic set of weights for a family of them."""
    begun = time.monotonic()  # a time budget is the command's, with all that it loads

    from depthdial.hf.adapter import AdapterCard
    from depthdial.report.kit.style import save_figure
    from depthdial.report.study.training_plot import draw_training
    from depthdial.train.depth.finetune import finetune as train
    from depthdial.train.running import is_main

    if (route is None) == (elastic is None):
        raise InputError("Say what to train: either --route uls:50% or --elastic routes.json.")
    settings = training.settings(distill=elastic is not None if distill is None else distill, seed=source.seed)
    options = _trainer_options(trainer)
    sequences = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load()
    result = train(
        loaded,
        tokenizer,
        task=sequences,
        routes=_chosen(route or elastic or "", layers, loaded),
        out=out,
        settings=settings,
        name=loading.model,
        start_from=start_from,
        in_place=settings.method == "full" and not settings.distill,
        trainer_options=options,
        progress=True,
        clock=lambda: time.monotonic() - begun,
    )
    if not is_main():
        return
    tokens = result.record["response_tokens_by_route"]
    print_table("Response tokens trained on", ["route", "tokens"], [[name, f"{n:,}"] for name, n in tokens.items()])
    if result.record.get("ended_by") == "time":
        done, planned = result.record["steps"], result.record["scheduled_steps"]
        typer.echo(f"ended by time: {done:,} of {planned:,} steps within {settings.max_minutes:g} minutes")
    typer.echo(f"loss: {save_figure(draw_training(result.record), out / 'training.png')}")
    is_adapter = settings.method == "lora"
    typer.echo(f"{'adapter' if is_adapter else 'model'}: {out}")
    words = (loading.model, "PROMPT", "--adapter", out) if is_adapter else (out, "PROMPT")
    say_next("generate", *words, "--depth", _as_depth(AdapterCard.load(out).routes[0]), *prompt_words(settings.prompt_depth))


@with_bundles
def train_gates(
    loading: ModelOptions,
    out: OutFolder,
    source: DataOptions,
    gates: Annotated[Given, GateOptions],
    training: Annotated[Given, GateRunOptions],
    trainer: Trainer = None,
    limit: Limit = None,
) -> None:
    """Train gates that decide token by token which layers run, to a budget or at a price."""
    from depthdial.hf.adapter import merged
    from depthdial.report.gates.training_plot import plot_gate_training
    from depthdial.train.gates.training import train_gates as train
    from depthdial.train.running import is_main

    options = _trainer_options(trainer)
    settings = gates.settings(run=training.settings(seed=source.seed))
    sequences = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load()
    loaded = merged(loaded)
    result = train(
        loaded,
        tokenizer,
        task=sequences,
        out=out,
        settings=settings,
        name=loading.label,
        trainer_options=options,
        progress=True,
    )
    if not is_main():
        return
    last = result.record["history"][-_SHOWN_STEPS:]
    columns = ["loss/task", "fraction", "fraction/expected", "price"]
    means = [sum(entry.get(name, 0.0) for entry in last) / len(last) for name in columns]
    print_table(f"Means over the last {len(last)} steps", columns, [[f"{mean:.3f}" for mean in means]])
    typer.echo(f"training: {plot_gate_training(result.record, out / 'training.png')}")
    typer.echo(f"gates: {out}")
    say_next("sweep", *loading.words, *source.other_words, "--gates", out, "--out", f"{out}-sweep")


def _as_depth(route: Route) -> str:
    """The name of a route where verbs read it, else its layers: names of a searched family are known to its file alone."""
    from depthdial.routes import Route

    try:
        return route.name if Route.parse(route.name, route.n_layers) == route else str(route)
    except InputError:
        return str(route)


def _chosen(text: str, layers: str | None, model: Any) -> list[AnyRoute]:
    from depthdial.engine.depth import read_depths
    from depthdial.hf.architectures import count_layers

    routes = list(read_depths(text, model, count_layers(model)))
    if layers is None:
        return routes
    parts = [part.strip() for part in layers.split(",")]
    bad = next((part for part in parts if not part.isdecimal()), None)
    if bad is not None:
        raise InputError(f"--layers takes whole numbers such as 30,24,15, not {bad!r}.")
    wanted = list(map(int, parts))
    missing = next((n for n in wanted if n not in [route.cost_layers for route in routes]), None)
    if missing is not None:
        known = ", ".join(str(route.cost_layers) for route in routes)
        raise InputError(f"--layers names {missing}, but the family has routes of {known} layers.")
    return [route for route in routes if route.cost_layers in wanted]


def _trainer_options(text: str | None) -> dict[str, Any]:
    """Fields of TrainingArguments, each value as JSON would have it or else the text itself."""
    import json

    def read(value: str) -> Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value

    return {name: read(value) for name, value in pairs_of(text, "--trainer").items()}
