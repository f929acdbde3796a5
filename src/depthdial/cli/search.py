"""The verbs that search for routes: by one method, or by all of them beside each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli import options
from depthdial.cli.console import print_rows, print_table, prompt_words, say_next
from depthdial.cli.ray import OnRay, RayOptions, ray_settings
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

_METHOD = ("method", "metric", "screen", "beam_width", "nested")
SearchOptions = options_of(
    "search.run:search_routes",
    "Method",
    common=("method", "metric", "min_layers", "prompt_depth", "cost", "latency"),
    only=(
        *(*_METHOD, "prompt_depth", "min_layers", "cost", "latency"),
        *("answer_tokens", "batch_size", "allow_searched_rows"),
    ),
)


@options.with_bundles
def search(
    loading: options.ModelOptions,
    out: Annotated[Path, typer.Option(help="The route family file to write (.json).", callback=options.out_file)],
    source: options.DataOptions,
    how: Annotated[Given, SearchOptions],
    on_ray: Annotated[Given, RayOptions],
    limit: options.Limit = 24,
    ray: OnRay = False,
) -> None:
    """Find which layers a model can do without: a route for each number of layers, on calibration prompts."""
    from depthdial.search.run import check_prompt_depth, harm_measure, make_method, search_routes

    cluster = ray_settings(ray, on_ray)
    given = how.read()
    given["screen"] = _screen(given["screen"])
    # Before the model is loaded.
    method = make_method(**{name: given[name] for name in _METHOD})
    check_prompt_depth(given["prompt_depth"], method)
    if cluster is not None and method.metric is None:
        raise InputError(f"The search by {method.name} tries no routes, and is over soon: leave --ray out.")
    prompts = source.read(limit, split=source.held_out_split)
    loaded, tokenizer = loading.load()
    tell_rows(source, [*made_on(model=loaded), ("to search", prompts)], source.held_out_split)
    asked = {"task": prompts, **given}

    def make() -> Callable[[Any], float]:
        """What tries routes, in a process of its own."""
        loaded, tokenizer = loading.load()
        return harm_measure(loaded, tokenizer, **asked)

    with contextlib.ExitStack() as stack:
        if cluster is not None:
            from depthdial.scale.harms import harms_on_ray

            given["harms"] = stack.enter_context(harms_on_ray(make, cluster))
        given |= loading.measuring(loaded, out)
        search_routes(loaded, tokenizer, task=prompts, on_found=_print_family, **given)
    typer.echo(f"routes: {out}")
    run_so = prompt_words(given["prompt_depth"])
    say_next("sweep", *loading.words, *source.other_words, "--depth", out, *run_so, "--out", out.with_suffix(""))


def _screen(text: str) -> str | int | None:
    """`--screen`: a number of layers, of which 0 means all."""
    if text != "default" and not text.isdecimal():
        raise InputError(f"--screen takes a number of layers, 0 for all, not {text!r}.")
    return text if text == "default" else int(text) or None


SearchStudyOptions = options_of(
    "studies.search:SearchStudySettings", "Method", common=("methods", "fractions", "cost", "batch_size", "rouge")
)


@options.with_bundles
def search_study(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, SearchStudyOptions],
    calibration_split: options.CalibrationSplit = None,
    limit: options.Limit = None,
    calibration_limit: options.CalibrationLimit = 32,
) -> None:
    """Which search finds the better routes? All methods on the same prompts, judged on rows that none saw."""
    from depthdial.studies.search import search_study as run

    settings = how.settings()
    sequences = source.read(limit, split="test")
    prompts = replace(source, split=calibration_split or source.held_out_split or "train").read(calibration_limit)
    loaded, tokenizer = loading.load()
    tell_rows(source, [*made_on(model=loaded), ("to search", prompts), ("to judge", sequences)], "test")
    studying = loading.studying(out)
    result = run(loaded, tokenizer, task=sequences, calibration=prompts, settings=settings, **studying)
    print_rows(f"{loading.model} on {sequences.name}: {len(sequences.examples)} sequences", result.comparison.rows())
    typer.echo(f"report: {result.report}")
    family = out / "families" / f"{next(iter(result.comparison.families))}.json"
    say_next("generate", *loading.words, "PROMPT", "--depth", f"{family}:80%")


def _print_family(family: Any) -> None:
    """What was dropped at each size, and the KL or NLL on the calibration prompts where the method measures it."""
    about = family.made_by
    metric = next((name for name in ("speedup", "kl", "nll") if name in about), None)
    shallow = [route for route in reversed(family.cheapest_first()) if not route.is_full]
    order = about.get("drop_order") or []
    dropped = order or [", ".join(map(str, route.skipped)) for route in shallow]
    harm = [f"{value:.3f}" for value in about[metric]] if metric else ["–"] * len(shallow)
    rows = [[len(route), gone, value] for route, gone, value in zip(shallow, dropped, harm, strict=True)]
    title = "Layers dropped, one after the other" if order else "Layers dropped"
    measured = "expected speed-up" if metric == "speedup" else f"{(metric or 'kl').upper()} (nats)"
    print_table(title, ["layers left", "dropped", measured], rows)
