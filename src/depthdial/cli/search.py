"""The verbs that search for routes: by one method, or by all of them beside each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli.options import (
    AllowSearchedRows,
    AnswerTokens,
    BatchSize,
    CalibrationLimit,
    CalibrationSplit,
    DataOptions,
    Limit,
    ModelName,
    ModelOptions,
    OutFolder,
    out_file,
    print_rows,
    print_table,
    with_bundles,
)
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of

Cost = Annotated[str, typer.Option(help="What dropping a layer saves: layers, flops, or ms (measured here).")]


def _method(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Method")


@dataclass(frozen=True)
class MethodOptions:
    """How to search: the options of `dd.search_routes`, of which a method refuses those that it does not know."""

    method: Annotated[str, _method("greedy, beam, single-drop, block-influence or angular.")] = "greedy"
    metric: Annotated[str | None, _method("kl (default) or nll, of the first three.")] = None
    screen: Annotated[int | None, _method("Layers tried in each round after the first (default 8); 0: all.")] = None
    beam_width: Annotated[int | None, _method("Sets kept of each size (default 4).", "--beam-width")] = None
    nested: Annotated[
        bool | None, _method("Routes inside each other (default), or the best of each size.", "--nested/--no-nested")
    ] = None

    def given(self) -> dict[str, Any]:
        screen = "default" if self.screen is None else self.screen or None
        return {**vars(self), "screen": screen}


@with_bundles
def search(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The route family file to write (.json).", callback=out_file)],
    source: DataOptions,
    loading: ModelOptions,
    how: MethodOptions,
    cost: Cost = "layers",
    limit: Limit = 24,
    min_layers: Annotated[int | None, typer.Option(help="Search down to so many; default: half.")] = None,
    answer_tokens: AnswerTokens = 16,
    batch_size: BatchSize = 16,
    allow_searched_rows: AllowSearchedRows = False,
) -> None:
    """Find which layers a model can do without: a route for each number of layers, on calibration prompts."""
    from depthdial.measure.plan import ModelIdentity
    from depthdial.search.run import make_method, search_routes

    make_method(**how.given())  # before the model is loaded
    prompts = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load(model)
    tell_rows(source, [*made_on(model=loaded), ("to search", prompts)], source.held_out_split)
    search_routes(
        loaded,
        tokenizer,
        task=prompts,
        **how.given(),
        cost=cost,
        min_layers=min_layers,
        answer_tokens=answer_tokens,
        batch_size=batch_size,
        out=out,
        on_found=_print_family,
        allow_searched_rows=allow_searched_rows,
        identity=ModelIdentity.of(loaded, model),
        progress=True,
    )
    typer.echo(f"routes: {out}")


SearchStudyOptions = options_of(
    "studies.search:SearchStudySettings", "Method", common=("methods", "fractions", "cost", "batch_size", "rouge")
)


@with_bundles
def search_study(
    model: ModelName,
    out: OutFolder,
    source: DataOptions,
    loading: ModelOptions,
    options: Annotated[Given, SearchStudyOptions],
    calibration_split: CalibrationSplit = None,
    limit: Limit = None,
    calibration_limit: CalibrationLimit = 32,
) -> None:
    """Which search finds the better routes? All methods on the same prompts, judged on rows that none saw."""
    from depthdial.studies.search import search_study as run

    settings = options.settings()
    sequences = source.read(limit, split="test")
    prompts = replace(source, split=calibration_split or source.held_out_split or "train").read(calibration_limit)
    loaded, tokenizer = loading.load(model)
    tell_rows(source, [*made_on(model=loaded), ("to search", prompts), ("to judge", sequences)], "test")
    result = run(
        loaded,
        tokenizer,
        task=sequences,
        calibration=prompts,
        out=out,
        settings=settings,
        name=model if loading.adapter is None else f"{model} + {loading.adapter}",
        say=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    print_rows(f"{model} on {sequences.name}: {len(sequences.examples)} sequences", result.comparison.rows())
    typer.echo(f"report: {result.report}")


def _print_family(family: Any) -> None:
    """What was dropped at each size, and the KL or NLL on the calibration prompts where the method measures it."""
    about = family.made_by
    metric = next((name for name in ("kl", "nll") if name in about), None)
    shallow = [route for route in reversed(family.cheapest_first()) if not route.is_full]
    order = about.get("drop_order") or []
    dropped = order or [", ".join(map(str, route.skipped)) for route in shallow]
    harm = [f"{value:.3f}" for value in about[metric]] if metric else ["–"] * len(shallow)
    rows = [[len(route), gone, value] for route, gone, value in zip(shallow, dropped, harm, strict=True)]
    title = "Layers dropped, one after the other" if order else "Layers dropped"
    print_table(title, ["layers left", "dropped", f"{(metric or 'kl').upper()} (nats)"], rows)
