"""The verb `certify`: the cheapest depth that surely loses little, on rows with references."""

from __future__ import annotations

from typing import Annotated

import typer

from depthdial.cli import options
from depthdial.cli.console import print_rows, prompt_words, say_next
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

CertifyOptions = options_of(
    "measure.certify:certify_depths",
    "Certificate",
    common=("metric", "epsilon", "delta"),
    only=("metric", "epsilon", "delta", "method", "max_new_tokens", "prompt_depth", "batch_size"),
    names={"epsilon": ("--epsilon", "--epsilons")},
)


@options.with_bundles
def certify(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, CertifyOptions],
    routes: options.Routes = None,
    limit: options.Limit = None,
) -> None:
    """Find the cheapest depth that surely loses little quality; depths from the safest to the cheapest."""
    from depthdial.engine.depth import read_depths
    from depthdial.hf.architectures import count_layers
    from depthdial.measure.certify import Asked, certify_depths
    from depthdial.report.certify.page import loss_table
    from depthdial.report.pages import write_report
    from depthdial.routes import Route

    if routes is None:
        raise InputError("Say which depths to certify, from the safest to the cheapest: --depth searched:24,searched:20.")
    given = how.read()
    split = None if source.is_whole else source.held_out_split
    rows = source.read(limit, split=split)
    Asked.of(*(given[name] for name in ("metric", "epsilon", "delta", "method"))).check_rows(rows)  # before the model loads
    loaded, tokenizer = loading.load()
    depths = read_depths(routes, loaded, count_layers(loaded))
    tell_rows(source, [*made_on(depths, loaded), ("to certify", rows)], split)
    measuring = loading.measuring(loaded, out)
    found = certify_depths(loaded, tokenizer, task=rows, depths=depths, seed=source.seed, **given, **measuring)
    typer.echo(f"plan: {', '.join(one.plan_digest for one in found)}")
    print_rows(f"{rows.name}: {found[0].n_rows} calibration rows", loss_table(found))
    typer.echo("\n".join(one.statement for one in found))
    typer.echo(f"report: {write_report(out)}")
    best = max(found, key=lambda one: one.certified or 0).setting
    depth = next((one for one in depths if isinstance(one, Route) and one.name == best), None)
    if depth is not None:
        say_next("generate", *loading.words, "PROMPT", "--depth", str(depth), *prompt_words(given["prompt_depth"]))
