"""The verbs of a sequence controller: fit one, certify a price of it, judge it on test rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli import options
from depthdial.cli.console import print_rows, print_table, say_next
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

app = typer.Typer(help="Controllers that pick a route for every sequence: fit, certify, evaluate.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `controller fit`.")]
Epsilon = Annotated[float, typer.Option(help="Loss of quality against the full model that is allowed: 0.02 is 2 points.")]
Delta = Annotated[float, typer.Option(help="Probability of a wrong certificate.")]


FitOptions = options_of("control.fit:FitSettings", "Fit", common=("budget", "metric", "predictor"))
EvaluationOptions = options_of(
    "studies.controller:EvaluationSettings",
    "Judging",
    common=("budgets", "rouge"),
    skip=("timed_prompts", "n_bootstrap"),
)


@app.command()
@options.with_bundles
def fit(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, FitOptions],
    routes: options.Routes = None,
    limit: options.Limit = None,
) -> None:
    """Learn from train rows how good each route's answer will be, and set a price for the budget."""
    from depthdial.control.controller import SequenceController
    from depthdial.data.leakage import require_no_test_split
    from depthdial.engine.depth import read_depths
    from depthdial.hf.adapter import adapter_card
    from depthdial.hf.architectures import count_layers
    from depthdial.routes.families import fixed_routes

    chosen = how.settings(seed=source.seed)
    rows = source.read(limit, split=source.held_out_split)
    require_no_test_split(rows, "fit a controller")
    loaded, tokenizer = loading.load()
    card = adapter_card(loaded)
    n_layers = count_layers(loaded)
    given = fixed_routes(read_depths(routes, loaded, n_layers), n_layers) if routes else None
    known = given or (() if card is None else card.routes)
    tell_rows(source, [*made_on(known, loaded), ("to fit a controller", rows)], source.held_out_split)
    measuring = loading.measuring(loaded, out)
    controller = SequenceController.fit(loaded, tokenizer, task=rows, routes=given, **measuring, **vars(chosen))
    card = controller.card
    table = [
        [route.name, f"{cost:.4g}", f"{mean:.3f}", "–" if r2 is None else f"{r2:.2f}"]
        for route, cost, mean, r2 in zip(card.routes, card.route_costs, card.means, card.r2, strict=True)
    ]
    title = f"{controller.predictor.kind} on {len(rows.examples)} sequences, {card.metric}"
    print_table(title, ["route", f"cost ({card.cost_unit})", "mean", "R2, cross-validated"], table)
    typer.echo(f"controller: {out}")
    say_next("controller", "evaluate", out, *loading.words, *source.other_words, "--out", f"{out}-evaluation")


@app.command()
@options.with_bundles
def certify(
    folder: Folder,
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    epsilon: Epsilon = 0.02,
    delta: Delta = 0.05,
    method: Annotated[
        str,
        typer.Option(
            help="betting, star_betting, empirical_bernstein, hoeffding_bentkus, hoeffding, conformal_risk_control."
        ),
    ] = "betting",
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
) -> None:
    """Find a price at which the controller surely loses little, on rows that it has not seen, and save it at that price."""
    from depthdial.control.certify import certification_plan
    from depthdial.control.controller import SequenceController
    from depthdial.data.leakage import require_no_test_split

    controller = SequenceController.from_pretrained(folder)
    plan: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "method": method}
    certification_plan(controller, **plan)  # refuses what is out of range
    split = None if source.is_whole else "validation"
    rows = source.read(limit, split=split)
    require_no_test_split(rows, "certify")
    loaded, tokenizer = loading.load()
    tell_rows(source, [*_seen_by(controller, loaded), ("to certify", rows)], split)
    apart = out / "certification"  # not where the rows of the fit are, which an evaluation looks for
    measuring = {**loading.measuring(loaded, apart), "batch_size": batch_size}
    certificate = controller.certify(loaded, tokenizer, task=rows, **plan, **measuring)
    typer.echo(certificate.statement)
    controller.certified(certificate).save_pretrained(out)
    typer.echo(f"controller: {out}")
    say_next("generate", *loading.words, "PROMPT", "--depth", out)


@app.command()
@options.with_bundles
def evaluate(
    folder: Folder,
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, EvaluationOptions],
    calibration_split: Annotated[
        str | None, typer.Option(help="Rows for certificates; default: validation, of a folder that has it.")
    ] = None,
    limit: options.Limit = None,
    calibration_limit: options.CalibrationLimit = 500,
) -> None:
    """Judge a controller on test rows: its gain at equal cost, its rivals, the oracles, certificates, and a report."""
    from depthdial.control.controller import SequenceController
    from depthdial.studies.controller import evaluate_controller

    controller = SequenceController.from_pretrained(folder)  # before anything is loaded
    settings = how.settings()
    split = None if source.is_whole else "test"
    rows = source.read(limit, split=split)
    held = _calibration_rows(source, calibration_split, calibration_limit)
    loaded, tokenizer = loading.load()
    tell_rows(source, [*_seen_by(controller, loaded), ("to certify", held), ("to judge", rows)], split)
    result = evaluate_controller(
        loaded,
        tokenizer,
        folder,
        task=rows,
        calibration=held,
        out=out,
        settings=settings,
        name=loading.model,
        progress=True,
    )
    print_scores(result.scores)
    typer.echo(f"report: {result.report}")
    say_next("generate", *loading.words, "PROMPT", "--depth", folder)


def _seen_by(controller: Any, model: Any) -> list[tuple[str, Any]]:
    """Parts for `tell_rows`: what a controller, its routes, its certificates and its model were made on."""
    fitted_on, certified = controller.card.fitted_on, controller.certified_on.prompts()
    searched = ("searched", fitted_on.get("searched_on", ()))
    return [searched, *made_on(model=model), ("fitted", fitted_on["prompts"]), ("certified", certified)]


def print_scores(scores: Any) -> None:
    """A table and sentences for each score of a controller, then its certificates."""
    from depthdial.report.controller.tables import controller_table, headline

    for name, score in scores.scores.items():
        print_rows(f"{name}: mean over {len(score.budgets)} budgets", controller_table(score, -1))
        typer.echo("\n".join(headline(score)))
    for certificate in scores.certificates:
        typer.echo(certificate.statement)


def _calibration_rows(source: options.DataOptions, split: str | None, limit: int) -> Any:
    """The split that was asked for; the validation rows of a folder that has them; else none."""
    from depthdial.data.sources import has_split

    if split is None and (source.data is None or source.is_whole):
        return None
    if split is None and not has_split(source.origin, "validation"):
        typer.echo("no validation rows: no certificates (name a split with --calibration-split)", err=True)
        return None
    return replace(source, split=split or "validation").read(limit)


def rows_to_fit(source: options.DataOptions, n: int, used: Collection[str]) -> Any:
    """The first `n` train sequences whose prompts' hashes are not in `used`, by a search or a training; None for 0."""
    if n == 0:
        return None
    if n < 0:
        raise InputError(f"--controller-limit must be a whole number of at least 0, not {n}.")
    if source.is_builtin:
        raise InputError(
            "The built-in set has no prompts to fit a controller on: give --data, or a --task with a train split."
        )
    rows = replace(source, split="train").read(n + len(used))
    return _apart(rows, used, n, "to fit a controller: give more rows")


def unsearched(rows: Any, used: Collection[str], limit: int | None) -> Any:
    """The first `limit` of the sequences (all by default) whose prompts' hashes are not in `used`."""
    apart = _apart(rows, used, limit, "to judge: give more rows, or a smaller --calibration-limit")
    return replace(apart, split="test")


def _apart(rows: Any, used: Collection[str], limit: int | None, remedy: str) -> Any:
    from depthdial.data.leakage import prompt_hash

    apart = tuple(example for example in rows.examples if prompt_hash(example) not in used)
    if not apart:
        raise InputError(f"All {len(rows.examples)} rows are searched or trained on, so none is left {remedy}.")
    return replace(rows, examples=apart[:limit])
