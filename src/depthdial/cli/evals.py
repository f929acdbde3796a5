"""The verb `eval`: tasks of lm-evaluation-harness at several depths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options
from depthdial.cli.console import print_rows, say_next
from depthdial.cli.settings import Given, options_of

EvalOptions = options_of(
    "evals.evaluate:evaluate",
    "Evaluation",
    common=("tasks", "prompt_depth"),
    only=("tasks", "prompt_depth", "limit", "num_fewshot", "chat", "batch_size", "max_length"),
)
_IS_ROUTE = re.compile(r"[\d,-]+")  # layers, and not what decides about them
_DEPTH = (
    "Routes such as full,uls:50%,ee:12; shares (80%), counts, FILE:24 or searched:24; lossless; a route family file; or the "
    "folder of a controller or of gates."
)


@options.with_bundles
def evaluate(
    loading: options.ModelOptions,
    out: options.OutFolder,
    how: Annotated[Given, EvalOptions],
    depth: Annotated[
        str, typer.Option("--depth", "--routes", "--route", help=_DEPTH, callback=options.named_files)
    ] = "full",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
) -> None:
    """Score a model at several depths on tasks of lm-evaluation-harness; started again, it goes on."""
    from depthdial.evals.evaluate import evaluate as run
    from depthdial.evals.harness import require_harness
    from depthdial.measure.plan import ModelIdentity
    from depthdial.report.eval.page import write_eval_report
    from depthdial.report.eval.tables import answer_sentences, depths_table, single_sentences

    require_harness()
    loaded, tokenizer = loading.load()
    results = run(
        loaded,
        tokenizer,
        depth=depth,
        out=out,
        include_path=include_path,
        seed=seed,
        identity=ModelIdentity.of(loaded, loading.model),
        say=lambda line: typer.echo(line, err=True),
        **how.read(),
    )
    print_rows(f"{loading.model}: {len(results.tasks)} tasks at {len(results.depths)} depths", depths_table(results))
    for sentence in [*answer_sentences(results), *single_sentences(results)]:
        typer.echo(sentence)
    typer.echo(f"report: {write_eval_report(out)}")
    routes = [unit.route for unit in results.units if _IS_ROUTE.fullmatch(unit.route) and not unit.is_full]
    say_next("generate", *loading.words, "PROMPT", "--depth", routes[0] if routes else "full")
