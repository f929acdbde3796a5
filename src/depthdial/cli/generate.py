"""The verb `generate`: one prompt, answered as it comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli.console import say_next
from depthdial.cli.options import ModelOptions, NewTokens, PromptDepth, TemplateName, named_files, with_bundles
from depthdial.errors import InputError

_DEPTH = (
    "Which layers run: full, uls:50%, drop:12,17, ..; a share (0.8, 80%) or count (24) for the best known route of so many; "
    "FILE:24 or searched:24 for one of a family; lossless or lossless:ROUTE for the full model's own answer, drafted on "
    "fewer layers where that is faster; or a controller's folder. Default: full"
)


@with_bundles
def generate(
    loading: ModelOptions,
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads it from standard input.")],
    depth: Annotated[str | None, typer.Option("--depth", "--route", help=_DEPTH, callback=named_files)] = None,
    routes: Annotated[str | None, typer.Option(help="With a share or count: a route family file to choose from.")] = None,
    controller: Annotated[Path | None, typer.Option(help="Or a controller's folder: it reads the prompt and picks.")] = None,
    budget: Annotated[str | None, typer.Option(help="With a controller: another mean cost, such as 24 or 80%.")] = None,
    prompt_depth: PromptDepth = "full",
    max_new_tokens: NewTokens = 128,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt, for the chat template.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; 0: greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a sampled answer.")] = None,
    n: Annotated[int, typer.Option("-n", "--num-return-sequences", help="Sampled answers; above 1 they do not stream.")] = 1,
    presence_penalty: Annotated[float | None, typer.Option(help="-2 to 2, against tokens that the answer has.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="-2 to 2, for each time that it has them.")] = None,
    logit_bias: Annotated[list[str] | None, typer.Option(metavar="ID=BIAS", help="-100 to 100; may be repeated.")] = None,
    logprobs: Annotated[int | None, typer.Option(help="List tokens with log-probabilities, beside so many others.")] = None,
    template: TemplateName = None,
) -> None:
    """Answer one prompt on one route; the text streams, then layers run and tokens per second."""
    from depthdial.engine.generate import generate as answer

    chosen = _depth(depth, controller, budget, routes)
    text = _standard_input() if prompt == "-" else prompt
    given: dict[str, Any] = {"prompts": text}
    if system is not None:
        given = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}
    if temperature is not None:
        given |= {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if n > 1 and not temperature:
        raise InputError(f"-n {n} is for sampled answers, since greedy ones are all the same: give --temperature too.")
    penalties = {"presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty, "logprobs": logprobs}
    given |= {name: value for name, value in penalties.items() if value is not None}
    if logit_bias:
        given["logit_bias"] = dict(map(_bias, logit_bias))
    loaded, tokenizer = loading.load()
    results = answer(
        loaded,
        tokenizer,
        depth=chosen,
        routes=routes,
        prompt_depth=prompt_depth,
        max_new_tokens=max_new_tokens,
        template=template or "auto",
        stop_strings=stop or None,
        seed=seed,
        n=n,
        on_text=None if n > 1 else lambda piece: typer.echo(piece, nl=False),
        **given,
    )
    for number, result in enumerate(results, 1):
        if n > 1:
            typer.echo(f"[{number}/{n}] {result.text}")
        _say_how(result, prompt_depth, tokenizer)
    say_next("study", *loading.words, "--data", "PROMPTS.jsonl", "--out", "study", err=True)


def _say_how(result: Any, prompt_depth: str, tokenizer: Any) -> None:
    speed = f"{result.tokens_per_sec:.1f} tokens/s" if result.new_tokens > 1 else "one token, from the prompt's pass"
    typer.echo(
        f"\n\n{result.layers_run:g} of {result.route.n_layers} layers · {result.new_tokens} tokens · {speed} · "
        f"prompt {result.prefill_sec:.2f} s ({prompt_depth} depth)",
        err=True,
    )
    if result.speculation is not None:
        typer.echo(str(result.speculation), err=True)
    if result.predicted is not None:
        told = ", ".join(f"{name} {quality:.3f}" for name, quality in result.predicted.items())
        typer.echo(f"{result.route.name} · predicted: {told} · price {result.price:.4g}", err=True)
    for one in result.logprobs or ():
        beside = "  ".join(f"{tokenizer.decode([token])!r} {logprob:.3f}" for token, logprob in one.top)
        typer.echo(f"{tokenizer.decode([one.token])!r} {one.logprob:.3f}{' | ' * bool(beside)}{beside}", err=True)


def _bias(text: str) -> tuple[str, float]:
    token, _, value = text.partition("=")
    try:
        return token, float(value)
    except ValueError:
        raise InputError(f"--logit-bias {text!r} is not a token id and a number: give such as 50=-100.") from None


def _depth(text: str | None, controller: Path | None, budget: str | None, routes: str | None) -> Any:
    """What `dd.generate` takes; what can be refused without the model is refused here."""
    from depthdial.control.controller import CONTROLLER_FILE, SequenceController
    from depthdial.engine.depth_numbers import number_in

    if text is not None and controller is not None:
        raise InputError("--depth and --controller each say which layers run: give one of them.")
    if text is not None and (Path(text) / CONTROLLER_FILE).is_file():
        controller = Path(text)
    if controller is not None:
        chosen = SequenceController.from_pretrained(controller)
        return chosen if budget is None else chosen.at(budget)
    if budget is not None:
        raise InputError("--budget is for a controller: give its folder with --controller, or leave it out.")
    if number_in(text) is None and routes is not None:
        raise InputError("--routes says what a depth in numbers chooses from: give such as --depth 0.8 too.")
    return "full" if text is None else text


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is not UTF-8 ({error.reason} at byte {error.start}): convert it first.") from error
