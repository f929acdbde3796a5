"""The verbs that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli_options import DataOptions, Limit, ModelName, ModelOptions, OutFolder, print_table, with_bundles
from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.routes import AnyRoute


def _train(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Training")


@dataclass(frozen=True)
class TrainOptions:
    """How to train: the fields of `FinetuneSettings`; None leaves a field at its default."""

    method: Annotated[str, _train("lora or full.")] = "lora"
    rank: Annotated[int, _train("Of the adapter.")] = 16
    learning_rate: Annotated[float | None, _train("Default: 1e-3 for lora, 2e-5 for full.", "--learning-rate")] = None
    batch_size: Annotated[int, _train("Sequences of one pass.", "--batch-size")] = 8
    accumulation: Annotated[int, _train("Batches of one optimizer step.")] = 1
    max_tokens: Annotated[int | None, _train("Response tokens, over all routes; default: one epoch.", "--max-tokens")] = None
    epochs: Annotated[float, _train("Passes over the rows.")] = 1.0
    prompt_depth: Annotated[str, _train("full (the prompt runs every layer) or route.", "--prompt-depth")] = "full"
    prompt_gradient: Annotated[bool, _train("Also learn through full-depth prompts.", "--prompt-gradient")] = False
    answers: Annotated[str, _train("Learn reference, the model's own, or both answers: reference, model, both.")] = (
        "reference"
    )
    distill: Annotated[bool | None, _train("Learn the full model's predictions; default: with --elastic.")] = None
    temperature: Annotated[float, _train("Of the distillation.")] = 1.0
    cross_entropy: Annotated[float, _train("Its share in the loss beside the KL.", "--cross-entropy")] = 0.0
    routes_per_step: Annotated[int, _train("Routes that a batch runs, of a family.", "--routes-per-step")] = 3
    ends_every: Annotated[int, _train("Deepest and cheapest route in every so many steps.", "--ends-every")] = 1
    emphasis: Annotated[str | None, _train("Draw routes more often: greedy-kl:24=3,full=0.5")] = None
    weights_dtype: Annotated[str, _train("What an adapter is saved in.", "--weights-dtype")] = "float32"
    save_every: Annotated[int, _train("Steps between checkpoints.", "--save-every")] = 50
    trainer: Annotated[str | None, _train("Fields of TrainingArguments: report_to=tensorboard,bf16=true")] = None

    def settings(self, *, is_elastic: bool, seed: int) -> Any:
        """The FinetuneSettings that these options mean."""
        from depthdial.train.settings import FinetuneSettings

        given = {name: value for name, value in vars(self).items() if name not in ("trainer", "emphasis", "distill")}
        emphasis = {name: _number(name, value) for name, value in _pairs(self.emphasis, "--emphasis").items()}
        distill = is_elastic if self.distill is None else self.distill
        return FinetuneSettings(**given, emphasis=emphasis, distill=distill, seed=seed)


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
    from depthdial.models.architectures import count_layers
    from depthdial.report.training_plot import plot_training
    from depthdial.train.finetune import finetune as train
    from depthdial.train.running import is_main

    if (route is None) == (elastic is None):
        raise InputError("Say what to train: either --route uls:50% or --elastic routes.json.")
    settings = training.settings(is_elastic=elastic is not None, seed=source.seed)
    options = {name: _value(text) for name, text in _pairs(training.trainer, "--trainer").items()}
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


def _chosen(text: str, layers: str | None, n_layers: int) -> list[AnyRoute]:
    from depthdial.families import read_routes

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
