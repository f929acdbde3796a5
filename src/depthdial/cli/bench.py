"""The verbs about time: `bench` measures it, and `forecast` says whether self-speculation can pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options
from depthdial.cli.console import print_rows, say_next
from depthdial.cli.settings import Given, options_of

BenchOptions = options_of(
    "measure.bench:BenchSettings",
    "Size",
    common=("depths", "rows", "context"),
    names={"depths": ("--depths", "--depth", "--routes")},
)


@options.with_bundles
def bench(
    loading: options.ModelOptions,
    out: options.OutFolder,
    how: Annotated[Given, BenchOptions],
    seed: Annotated[int, typer.Option(help="Of the prompts' words.")] = 0,
) -> None:
    """Measure what steps and prompts take on this machine, by layers, rows and context: the latency model."""
    from depthdial.latency.model import BENCH_FILE
    from depthdial.measure.bench import bench as run
    from depthdial.report.bench.page import write_bench_report
    from depthdial.report.bench.tables import answer_sentences, ceilings_sentence, prompts_table, steps_table

    settings = how.settings(seed=seed)
    loaded, tokenizer = loading.load()
    latency = run(loaded, tokenizer, settings=settings, **loading.measuring(loaded, out))
    print_rows(f"{loading.model}, {latency.dtype}: decoding steps", steps_table(latency))
    print_rows("Prompts: time to the first token", prompts_table(latency))
    typer.echo("\n".join([ceilings_sentence(latency), *answer_sentences(latency)]))
    typer.echo(f"latency model: {out / BENCH_FILE}")
    typer.echo(f"report: {write_bench_report(out)}")
    say_next("forecast", "SWEEP", "--latency", out / BENCH_FILE)


ForecastOptions = options_of(
    "oracles.speculation:speculation_forecast", "Forecast", only=("context_tokens", "reuse_prefix", "n_bootstrap")
)


def _numbers(text: str | None, option: str, default: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
    from depthdial.cli.settings import layers_of

    return default if text is None else layers_of(text, option)


@options.with_bundles
def forecast(
    folder: options.RowsFolder,
    latency: Annotated[Path, typer.Option(help="bench.json of depthdial bench, or its folder.")],
    how: Annotated[Given, ForecastOptions],
    routes: Annotated[
        str | None, typer.Option("--depth", "--routes", help="Names of routes of the rows. Default: all.")
    ] = None,
    drafts: Annotated[str | None, typer.Option(help="Drafted tokens to try. Default: 1,2,4,8.")] = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes. Default: those of the bench.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Can self-speculation pay? From a sweep's agreement and measured times, for every route, draft length and batch."""
    from depthdial.oracles.speculation import DRAFT_TOKENS, speculation_forecast
    from depthdial.report.bench.forecast import best_table, forecast_sentences, write_forecast
    from depthdial.routes import split_routes
    from depthdial.rows.store import load_study_rows

    found = speculation_forecast(
        load_study_rows(folder),
        latency,
        routes=None if routes is None else split_routes(routes),
        draft_tokens=_numbers(drafts, "--drafts") or DRAFT_TOKENS,
        batch_rows=_numbers(batches, "--batches"),
        seed=seed,
        **how.read(),
    )
    print_rows("Self-speculation: the best draft length of every route", best_table(found, most=5))
    typer.echo("\n".join(forecast_sentences(found)))
    typer.echo(f"forecast: {write_forecast(folder, found)}")
