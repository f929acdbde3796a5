"""The verbs that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli.options import DataOptions, Limit, ModelName, ModelOptions, OutFolder, print_table, with_bundles
from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.routes import AnyRoute


# What the table of trained gates is a mean over.
_SHOWN_STEPS = 10


def _train(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Training")


def _gate(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Gates")


@dataclass(frozen=True)
class RunOptions:
    """What every training run is told; None leaves a setting at its default."""

    rank: Annotated[int, _train("Of the adapter.")] = 16
    learning_rate: Annotated[
        float | None, _train("Default: 1e-3 for an adapter, 2e-5 for all weights.", "--learning-rate")
    ] = None
    batch_size: Annotated[int, _train("Sequences of one pass.", "--batch-size")] = 8
    accumulation: Annotated[int, _train("Batches of one optimizer step.")] = 1
    max_tokens: Annotated[int | None, _train("Response tokens, over all routes; default: one epoch.", "--max-tokens")] = None
    epochs: Annotated[float, _train("Passes over the rows.")] = 1.0
    prompt_depth: Annotated[str, _train("full (the prompt runs every layer) or route.", "--prompt-depth")] = "full"
    answers: Annotated[str, _train("Learn reference, the model's own, or both answers: reference, model, both.")] = (
        "reference"
    )
    cross_entropy: Annotated[float, _train("Its share in the loss beside the KL.", "--cross-entropy")] = 0.0
    save_every: Annotated[int, _train("Steps between checkpoints.", "--save-every")] = 50
    trainer: Annotated[str | None, _train("Fields of TrainingArguments: report_to=tensorboard,bf16=true")] = None

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {name: _value(text) for name, text in _pairs(self.trainer, "--trainer").items()}


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """How to train for depth: the fields of `FinetuneSettings`."""

    method: Annotated[str, _train("lora or full.")] = "lora"
    distill: Annotated[bool | None, _train("Learn the full model's predictions; default: with --elastic.")] = None
    prompt_gradient: Annotated[bool, _train("Also learn through full-depth prompts.", "--prompt-gradient")] = False
    temperature: Annotated[float, _train("Of the distillation.")] = 1.0
    routes_per_step: Annotated[int, _train("Routes that a batch runs, of a family.", "--routes-per-step")] = 3
    ends_every: Annotated[int, _train("Deepest and cheapest route in every so many steps.", "--ends-every")] = 1
    emphasis: Annotated[str | None, _train("Draw routes more often: greedy-kl:24=3,full=0.5")] = None
    weights_dtype: Annotated[str, _train("What an adapter is saved in.", "--weights-dtype")] = "float32"

    def settings(self, *, is_elastic: bool, seed: int) -> Any:
        """The FinetuneSettings that these options mean."""
        from depthdial.train.depth.settings import FinetuneSettings

        given = {name: value for name, value in vars(self).items() if name not in ("trainer", "emphasis", "distill")}
        emphasis = {name: _number(name, value) for name, value in _pairs(self.emphasis, "--emphasis").items()}
        distill = is_elastic if self.distill is None else self.distill
        return FinetuneSettings(**given, emphasis=emphasis, distill=distill, seed=seed)


@dataclass(frozen=True)
class GateOptions(RunOptions):
    """How to train gates: the fields of `GateSettings`."""

    target: Annotated[float | None, _gate("Fraction of all layers to reach and hold, such as 0.6.")] = None
    alpha: Annotated[float | None, _gate("Or what all layers cost in the loss, in nats.")] = None
    input: Annotated[str, _gate("hidden, fixed, position, embedding or embedding+position.")] = "hidden"
    kind: Annotated[str, _gate("linear or mlp.")] = "linear"
    hidden_width: Annotated[int, _gate("Of an mlp.", "--hidden-width")] = 64
    controlled: Annotated[str | None, _gate("Layers with a gate: 1-28; default: all but the first and the last.")] = None
    run_bias: Annotated[float, _gate("Log-odds of running at the start.", "--run-bias")] = 2.0
    temperature: Annotated[float, _gate("Of the soft decisions that gradients go through.")] = 1.0
    temperature_end: Annotated[float | None, _gate("What it is annealed to.", "--temperature-end")] = None
    annealing: Annotated[str, _gate("exponential or linear.")] = "exponential"
    distill: Annotated[bool, _train("Learn the full model's predictions.", "--distill")] = False
    backbone: Annotated[str, _gate("What trains beside the gates: lora, full or frozen.")] = "lora"
    gate_learning_rate: Annotated[float, _gate("Of the gates.", "--gate-learning-rate")] = 0.2
    ramp: Annotated[float, _gate("Share of the steps in which a target comes down.")] = 0.4
    key_values: Annotated[str, _gate("Of a skipped token: project, drop or copy.", "--key-values")] = "project"

    def settings(self, *, n_layers: int, seed: int) -> Any:
        """The GateSettings that these options mean, for a model of `n_layers` layers."""
        from depthdial.routes import Route
        from depthdial.train.gates.settings import GateSettings

        given = {name: value for name, value in vars(self).items() if name not in ("trainer", "controlled")}
        layers = None if self.controlled is None else getattr(Route.parse(self.controlled, n_layers), "layers", None)
        if self.controlled is not None and layers is None:
            raise InputError(f"--controlled takes layers such as 1-28, not the rule {self.controlled!r}.")
        return GateSettings(**given, controlled=layers, seed=seed)


@with_bundles
def finetune(
    model: ModelName,
    out: OutFolder,
    source: DataOptions,
    loading: ModelOptions,
    training: TrainOptions,
    route: Annotated[str | None, typer.Option(help="Train one route: a specialist.")] = None,
    elastic: Annotated[str | None, typer.Option(help="Train one set of weights for a family: a file, or routes.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only the family's routes of so many layers: 30,24,15")] = None,
    limit: Limit = None,
) -> None:
    """Fine-tune for depth: a specialist for one route, or one elastic set of weights for a family of them."""
    from depthdial.hf.architectures import count_layers
    from depthdial.report.study.training_plot import plot_training
    from depthdial.train.depth.finetune import finetune as train
    from depthdial.train.running import is_main

    if (route is None) == (elastic is None):
        raise InputError("Say what to train: either --route uls:50% or --elastic routes.json.")
    settings = training.settings(is_elastic=elastic is not None, seed=source.seed)
    options = training.trainer_options
    sequences = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load(model)
    result = train(
        loaded,
        tokenizer,
        task=sequences,
        routes=_chosen(route or elastic or "", layers, count_layers(loaded)),
        out=out,
        settings=settings,
        name=model,
        in_place=settings.method == "full" and not settings.distill,
        trainer_options=options,
        progress=True,
    )
    if not is_main():
        return
    tokens = result.record["response_tokens_by_route"]
    print_table("Response tokens trained on", ["route", "tokens"], [[name, f"{n:,}"] for name, n in tokens.items()])
    typer.echo(f"loss: {plot_training(result.record, out / 'training.png')}")
    typer.echo(f"{'adapter' if settings.method == 'lora' else 'model'}: {out}")


@with_bundles
def train_gates(
    model: ModelName,
    out: OutFolder,
    source: DataOptions,
    loading: ModelOptions,
    training: GateOptions,
    limit: Limit = None,
) -> None:
    """Train gates that decide token by token which layers run, to a budget or at a price."""
    from depthdial.hf.adapter import merged
    from depthdial.hf.architectures import count_layers
    from depthdial.report.gates.training_plot import plot_gate_training
    from depthdial.train.gates.training import train_gates as train
    from depthdial.train.running import is_main

    options = training.trainer_options
    if (training.alpha is None) == (training.target is None):
        raise InputError("Say what skipping is worth: either --target 0.6, a budget, or --alpha 2, a weight in the loss.")
    sequences = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load(model)
    name = model if loading.adapter is None else f"{model} + {loading.adapter}"
    loaded = merged(loaded)
    result = train(
        loaded,
        tokenizer,
        task=sequences,
        out=out,
        settings=training.settings(n_layers=count_layers(loaded), seed=source.seed),
        name=name,
        trainer_options=options,
        progress=True,
    )
    if not is_main():
        return
    last = result.record["history"][-_SHOWN_STEPS:]
    columns = ("loss/task", "fraction", "fraction/expected", "price")
    means = [sum(entry.get(name, 0.0) for entry in last) / len(last) for name in columns]
    print_table(f"Means over the last {len(last)} steps", list(columns), [[f"{mean:.3f}" for mean in means]])
    typer.echo(f"training: {plot_gate_training(result.record, out / 'training.png')}")
    typer.echo(f"gates: {out}")


def _chosen(text: str, layers: str | None, n_layers: int) -> list[AnyRoute]:
    from depthdial.routes.families import read_routes

    routes = list(read_routes(text, n_layers))
    if layers is None:
        return routes
    wanted = [_whole(part) for part in layers.split(",")]
    missing = next((n for n in wanted if n not in [route.cost_layers for route in routes]), None)
    if missing is not None:
        known = ", ".join(str(route.cost_layers) for route in routes)
        raise InputError(f"--layers names {missing}, but the family has routes of {known} layers.")
    return [route for route in routes if route.cost_layers in wanted]


def _pairs(text: str | None, option: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    bad = next((name for name, equals, _ in pairs if not equals), None)
    if bad is not None:
        raise InputError(f"{option} takes pairs such as name=value, not {bad.strip()!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--emphasis gives {name} the weight {text!r}: write a number.") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--layers takes whole numbers such as 30,24,15, not {text.strip()!r}.") from None


def _value(text: str) -> Any:
    """A field's value as JSON would have it, or the text itself."""
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
