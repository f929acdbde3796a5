"""The verbs around shipping: answers of some depths side by side, and what ships beside the full model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli import options
from depthdial.cli.console import print_answers, print_rows, say_next
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError
from depthdial.files import check_out_folder

if TYPE_CHECKING:
    from depthdial.measure.compare import Comparison

_ROWS = 8  # of a comparison in the terminal
_DEPTHS = "Two or more, as of sweep; the first is compared with."
Depths = Annotated[str, typer.Option("--depths", "--depth", help=_DEPTHS, callback=options.named_files)]


def _out_folder(path: Path | None) -> Path | None:
    return path if path is None else check_out_folder(path)


_OUT = "Folder for rows and a page; a stopped run goes on there."
OutRows = Annotated[Path | None, typer.Option("--out", help=_OUT, callback=_out_folder)]


@options.with_bundles
def compare(
    loading: options.ModelOptions,
    source: options.DataOptions,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What to answer; or --data.")] = None,
    depths: Depths = "full,80%",
    out: OutRows = None,
    prompt_depth: options.PromptDepth = "full",
    max_new_tokens: options.NewTokens = 64,
    batch_size: options.BatchSize = 8,
    limit: options.Limit = None,
) -> None:
    """Answers of some depths side by side, with what differs from the first; of rows with --out also as a page."""
    from depthdial.measure.compare import compare as run
    from depthdial.routes import split_routes

    has_rows = source.data is not None or source.task is not None
    if (prompt is None) != has_rows:
        raise InputError("Say what to answer: either one PROMPT, or rows with --data or --task.")
    if out is not None and not has_rows:
        raise InputError("--out is for rows: give them with --data or --task, or leave --out out.")
    if out is not None:
        _compare_rows(loading, source, depths, out, prompt_depth, max_new_tokens, batch_size, limit)
        return
    template: dict[str, Any] = {} if source.template is None else {"template": source.template}
    prompts = [prompt] if prompt is not None else _prompts(source, limit or _ROWS)
    loaded, tokenizer = loading.load()
    asked = {"depths": split_routes(depths), "prompt_depth": prompt_depth, "max_new_tokens": max_new_tokens}
    for one in run(loaded, tokenizer, prompts, **asked, **template):
        _show(one, say_prompt=prompt is None)
    say_next("sweep", *loading.words, "--data", "PROMPTS.jsonl", "--depth", depths, "--out", "sweep", err=True)


def _prompts(source: options.DataOptions, limit: int) -> list[str]:
    """The rows' own prompts, an instruction with its document below it."""
    examples = source.read(limit).examples
    chat = next((example.id for example in examples if example.messages), None)
    if chat is not None:
        raise InputError(f"Row {chat!r} is a conversation, which the terminal has no room for: give --out too.")
    return ["\n\n".join(filter(None, (example.instruction, example.document))) for example in examples]


def _show(comparison: Comparison, *, say_prompt: bool) -> None:
    first = comparison.answers[0].answer
    columns = []
    for one in comparison.answers:
        answer = one.answer
        speed = f"{answer.tokens_per_sec:.1f} tokens/s" if answer.new_tokens > 1 else "one token"
        ran = f"{answer.layers_run:g} of {answer.route.n_layers} layers" if answer.layers_run is not None else ""
        same = "" if answer is first else "the same" if one.is_same else f"the same up to token {one.same_tokens}"
        columns.append((one.depth, answer.text, " · ".join(filter(None, (ran, f"{answer.new_tokens} tokens", speed, same)))))
    if say_prompt:
        typer.echo(f"\n{comparison.prompt}")
    print_answers(columns)


def _compare_rows(
    loading: options.ModelOptions,
    source: options.DataOptions,
    depths: str,
    out: Path,
    prompt_depth: str,
    max_new_tokens: int,
    batch_size: int,
    limit: int | None,
) -> None:
    from depthdial.measure.compare import compare_rows
    from depthdial.report.pages import write_report
    from depthdial.report.study.tables import headline

    sequences = source.read(limit)
    loaded, tokenizer = loading.load()
    tell_rows(source, [*made_on(model=loaded), ("to compare", sequences)])
    size = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "prompt_depth": prompt_depth}
    rows = compare_rows(loaded, tokenizer, task=sequences, depths=depths, **size, **loading.measuring(loaded, out))
    print_rows(f"{sequences.name}: {len(sequences.examples)} sequences", headline(rows))
    typer.echo(f"report: {write_report(out)}")
    say_next("oracle", out)


CheckOptions = options_of(
    "measure.check:check",
    "Check",
    common=("keep", "metric", "max_new_tokens"),
    only=(
        *("keep", "metric", "max_new_tokens", "batch_size", "served_model", "send", "rouge_tokenizer", "keep_text"),
        "allow_searched_rows",
    ),
)


@options.with_bundles
def check(
    target: Annotated[str, typer.Argument(help="What ships: a folder, a .gguf file, or a server's URL.")],
    loading: options.ModelOptions,
    source: options.DataOptions,
    how: Annotated[Given, CheckOptions],
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds a server's API key.")] = None,
    out: OutRows = None,
    limit: options.Limit = None,
) -> None:
    """Check what ships against the full MODEL on held-out rows; exit status 0: it keeps enough, 1: no, or undecided."""
    from depthdial.hf.load import load
    from depthdial.measure.check import check as run
    from depthdial.measure.endpoint import is_url
    from depthdial.report.check.page import score_table
    from depthdial.report.pages import write_report

    api_key = _api_key(api_key_env)
    sequences = source.read(limit)
    loaded, tokenizer = loading.load()
    how_loaded = {
        name: getattr(loading, name) for name in ("dtype", "device", "device_map", "allow_bin", "trust_remote_code")
    }
    ships: Any = target if is_url(target) else load(target, **how_loaded)
    tell_rows(source, [*made_on(model=loaded), ("to judge", sequences)])
    given = {**how.read(), "progress": True, **({} if out is None else loading.measuring(loaded, out))}
    result = run(ships, loaded, tokenizer, task=sequences, api_key=api_key, **given)
    print_rows(f"{result.target} beside {loading.label}: {result.rows.num_rows} rows", score_table(result.to_dict()))
    if out is not None:
        typer.echo(f"report: {write_report(out)}")
    typer.echo(result.sentence)
    if result.answer != "yes":
        raise typer.Exit(1)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise InputError(f"The environment variable {variable} holds no API key: set it, or leave --api-key-env out.")
    return os.environ[variable]
