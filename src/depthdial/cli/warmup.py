"""The verb `warmup`: layers compiled ahead of the runs that use them."""

from __future__ import annotations

import typer

from depthdial.cli import options
from depthdial.cli.console import say_next


@options.with_bundles
def warmup(loading: options.ModelOptions) -> None:
    """Compile a model's layers for small steps on this CPU, once: later runs find them in the cache and are faster."""
    from depthdial.engine.session import Session
    from depthdial.engine.warmup import warm_up

    loaded, tokenizer = loading.load()
    done = warm_up(Session.of(loaded, tokenizer).model, progress=True)
    for reason in done.refused:
        typer.echo(f"uncompiled: {reason}")
    typer.echo(f"compiled: {done.n_compiled}, found: {done.n_found}, in {done.seconds:.0f} s")
    typer.echo(f"cache: {done.folder} (for {done.n_threads} threads; set DEPTHDIAL_CACHE for another place)")
    if done.n_compiled + done.n_found:
        say_next("generate", *loading.words, "PROMPT")
