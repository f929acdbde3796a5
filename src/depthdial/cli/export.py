"""The verb `export`: a route as files that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.checks import choice
from depthdial.cli import options
from depthdial.cli.console import print_rows, say_next
from depthdial.cli.rows import made_on, tell_rows
from depthdial.files import check_out_folder

_WAYS = ("hf", "gguf", "draft", "vllm")
_DEPTH = "One route: drop:12,17, uls:50%, ..; a share (80%) or count (24) for the best known route; FILE:24 or searched:24."


@options.with_bundles
def export(
    loading: options.ModelOptions,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.", callback=check_out_folder)],
    source: options.DataOptions,
    depth: Annotated[str, typer.Option("--depth", "--route", help=_DEPTH, callback=options.named_files)],
    to: Annotated[str, typer.Option(help="hf, gguf (llama.cpp), draft (to draft with) or vllm (for the plugin).")] = "hf",
    gguf_type: Annotated[
        str | None, typer.Option(help="f32, f16, bf16 or q8_0; default: f16, and of a .gguf file its own types.")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure what is written, as it will run, beside the route as studies do.")
    ] = True,
    study: Annotated[Path | None, typer.Option(help="Folder of a study or sweep, whose numbers stand beside.")] = None,
    limit: options.Limit = 48,
    max_new_tokens: options.NewTokens = 64,
    batch_size: options.BatchSize = 16,
    allow_searched_rows: Annotated[
        bool, typer.Option("--allow-searched-rows", help="Also rows that were searched on.")
    ] = False,
) -> None:
    """Write a route as files for transformers, llama.cpp or vLLM, and measure it as it will run there."""
    from depthdial.exports.card import quality_table
    from depthdial.exports.export import export as run
    from depthdial.exports.export import exported_route

    choice("way out", to, _WAYS)
    task = source.read(limit) if measure else None
    loaded, tokenizer = loading.load()
    route = exported_route(depth, loaded)
    if task is not None:
        tell_rows(source, [*made_on([route], loaded), ("to judge", task)])
    done = run(
        loaded,
        tokenizer,
        depth=route,
        out=out,
        to=to,
        name=loading.model,
        adapter=loading.adapter,
        gguf_type=gguf_type,
        source=loading.model if loading.model.lower().endswith(".gguf") else None,
        measured=measure,
        task=task,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        study=study,
        allow_searched_rows=allow_searched_rows,
        progress=True,
    )
    typer.echo(f"{'exported' if done.is_new else 'found'}: {out} ({len(done.route)} of {done.route.n_layers} layers)")
    if done.comparison is not None:
        typer.echo(f"loaded again: {done.comparison}")
    for note in done.notes:
        typer.echo(note)
    if done.quality is not None:
        print_rows(f"{loading.label} on {done.quality.task}: the route as it was exported", quality_table(done.quality))
        typer.echo(done.quality.sentence)
    for line in done.commands:
        typer.echo(f"run: {line}")
    if to in ("hf", "gguf"):
        say_next("check", out / "model.gguf" if to == "gguf" else out, *loading.words, "--data", "HELD-OUT.jsonl")
