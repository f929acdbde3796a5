"""The command line: one verb, one function of the library. Imports lazily, so that `--help` loads neither torch nor more.

Bad input ends with exit status 2 and one sentence; anything else that goes wrong is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from depthdial.cli import options
from depthdial.cli.bench import bench, forecast
from depthdial.cli.certify import certify
from depthdial.cli.console import prepare_console, print_rows, say_next, show_notices
from depthdial.cli.controller import app as controller
from depthdial.cli.controller import print_scores, rows_to_fit, unsearched
from depthdial.cli.evals import evaluate
from depthdial.cli.export import export
from depthdial.cli.gates import gate_depths, gates_study
from depthdial.cli.generate import generate
from depthdial.cli.oracle import oracle
from depthdial.cli.ray import OnRay, RayOptions, ray_settings
from depthdial.cli.rows import made_on, tell_rows, trained_rows
from depthdial.cli.search import search, search_study
from depthdial.cli.serve import serve
from depthdial.cli.settings import Given, options_of, parts_of
from depthdial.cli.ship import check, compare
from depthdial.cli.train import finetune, train_gates
from depthdial.cli.warmup import warmup
from depthdial.errors import InputError
from depthdial.files import check_out_folder

app = typer.Typer(
    name="depthdial",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"depthdial {version('depthdial')}")
        raise typer.Exit


def routes(
    layers: Annotated[int, typer.Option(help="Number of layers of the model.")],
    family: Annotated[str | None, typer.Option(help="ee, uls, rls, rls-wo1 or unified: every cost of it.")] = None,
    routes: Annotated[str | None, typer.Option(help="Routes, or a route family file, instead of a family.")] = None,
    seed: Annotated[int, typer.Option(help="Of a random family.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also draw them: a .png or .svg file.", callback=options.out_file)] = None,
) -> None:
    """Print and plot which layers run (the paper's Figure 3)."""
    from depthdial.report.study.routes_plot import family_text, plot_family
    from depthdial.routes import family_routes
    from depthdial.routes.families import read_routes

    if (family is None) == (routes is None):
        raise InputError("Say which routes to show: either --family uls or --routes full,uls:50%.")
    chosen = family_routes(family, layers, seed=seed) if family else read_routes(routes or "", layers)
    typer.echo(family_text(chosen))
    if out is not None:
        typer.echo(f"drawn in {plot_family(chosen, out)}")
    say_next("generate", "MODEL", "PROMPT", "--depth", chosen[0].name)


SimilarityOptions = options_of(
    "measure.similarity:similarity", "Size", only=("batch_size", "fidelity_tokens", "allow_searched_rows")
)
SweepOptions = options_of(
    "measure.sweep:sweep",
    "Sweep",
    common=("max_new_tokens", "prompt_depth"),
    only=(
        *("max_new_tokens", "prompt_depth", "samples", "temperature", "top_p", "batch_size", "fidelity_tokens"),
        *("use_stemmer", "rouge_tokenizer", "keep_text", "allow_searched_rows"),
    ),
)


@options.with_bundles
def similarity(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, SimilarityOptions],
    routes: options.Routes = None,
    limit: options.Limit = None,
) -> None:
    """How close a route's hidden states stay to the full model's (Figures 1a, 4, 5); default: every cost of all families."""
    from depthdial.engine.depth import read_depths
    from depthdial.hf.architectures import count_layers
    from depthdial.measure.similarity import similarity as compare
    from depthdial.report.study.tables import similarity_table

    sequences = source.read(limit)
    loaded, tokenizer = loading.load()
    chosen = None if routes is None else read_depths(routes, loaded, count_layers(loaded))
    tell_rows(source, [*made_on(chosen or (), loaded), ("to judge", sequences)])
    given = {**how.read(), **loading.measuring(loaded, out), "max_response_tokens": source.max_response_tokens}
    rows = compare(loaded, tokenizer, task=sequences, routes=chosen, **given)
    print_rows("Similarity to the full model (mean and 95% interval over sequences)", similarity_table(rows))
    typer.echo(f"rows: {out / 'rows.parquet'}")
    say_next("sweep", *loading.words, *source.words, "--depth", routes or "full,uls:80%,ee:80%", "--out", f"{out}-sweep")


@options.with_bundles
def sweep(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, SweepOptions],
    on_ray: Annotated[Given, RayOptions],
    routes: options.Routes = None,
    gates: Annotated[Path | None, typer.Option(help="Folder of train-gates: sweep its gates, sampled and argmax.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Default: rouge_l,nll,kl,agreement; of samples rouge_l.")] = None,
    limit: options.Limit = None,
    keep: options.Keep = 0.95,
    ray: OnRay = False,
) -> None:
    """Run every sequence on every route: quality, theoretical cost and measured time, one row each."""
    from depthdial.engine.depth import read_depths
    from depthdial.hf.architectures import count_layers
    from depthdial.measure.sweep import Sweep
    from depthdial.measure.sweep import sweep as run
    from depthdial.report.study.tables import headline
    from depthdial.report.study.verdict import decide

    if routes is None and gates is None:
        raise InputError("Say what to sweep: --routes full,uls:50%, or --gates DIR, or both.")
    cluster = ray_settings(ray, on_ray)
    sequences = source.read(limit)
    if metrics is None:
        samples = how.values["samples"]
        scored = not samples or sequences.any_reference
        metrics = ("rouge_l" if samples else "rouge_l,nll,kl,agreement") if scored else "rouge_l,kl,agreement"
    seed, asked = source.seed, {**how.read(), "metrics": parts_of(metrics)}

    def ready() -> tuple[Any, Any, list[Any], dict[str, Any]]:
        """The model, its tokenizer, depths and what else to run; on Ray in each process."""
        loaded, tokenizer = loading.load()
        loaded, depths = (loaded, []) if gates is None else gate_depths(gates, loaded, seed)
        chosen = [*(read_depths(routes, loaded, count_layers(loaded)) if routes else ()), *depths]
        return loaded, tokenizer, chosen, {"task": sequences, "routes": chosen, **asked, **loading.measuring(loaded, out)}

    def make() -> Sweep:
        loaded, tokenizer, _, given = ready()
        return Sweep.of(loaded, tokenizer, **{name: value for name, value in given.items() if name != "progress"})

    loaded, tokenizer, chosen, given = ready()
    tell_rows(source, [*made_on(chosen, loaded), ("to judge", sequences)])
    if cluster is None:
        rows = run(loaded, tokenizer, **given)
    else:
        from depthdial.scale.work import run_on_ray

        given.pop("progress")
        rows = run_on_ray(make, cluster, job=Sweep.of(loaded, tokenizer, **given), progress=True)
    print_rows(f"{sequences.name}: {len(sequences.examples)} sequences", headline(rows))
    typer.echo(f"rows: {out / 'rows.parquet'}")
    typer.echo(decide(rows, keep, how.values["prompt_depth"]).sentence)
    say_next("oracle" if len(chosen) > 1 else "report", out)


def report(folder: options.RowsFolder, keep: options.Keep = 0.95) -> None:
    """Draw the figures of a folder's rows and write one self-contained page."""
    from depthdial.report.pages import kind_of, write_report
    from depthdial.report.study.folder import read_folder

    typer.echo(f"report: {write_report(check_out_folder(folder), keep=keep)}")
    if kind_of(folder) == "study":
        verdict = read_folder(folder, keep).verdict
        told = verdict.next_line if verdict else ""
        typer.echo(told or f"Next: depthdial sweep MODEL --depth full,80% --out {folder}-sweep", err=True)
    else:
        say_next("study", "MODEL", "--out", f"{folder}-study", err=True)


StudyOptions = options_of(
    "studies.study:StudySettings",
    "Size",
    common=("routes", "max_new_tokens"),
    only=("routes", "max_new_tokens", "batch_size", "prompt_depth", "keep_text"),
    names={"routes": ("--depth", "--routes", "--route")},
)


@options.with_bundles
def study(
    loading: options.ModelOptions,
    out: options.OutFolder,
    source: options.DataOptions,
    how: Annotated[Given, StudyOptions],
    calibration_split: options.CalibrationSplit = None,
    limit: options.Limit = None,
    calibration_limit: options.CalibrationLimit = 16,
    controller_limit: options.ControllerLimit = 0,
    keep: options.Keep = 0.95,
) -> None:
    """Search, similarity, sweep, oracle and report, in one folder; started again, it goes on.

    With --adapter the adapter's own routes are measured beside those of the untouched model; with --controller-limit a
    controller is fitted on train rows and judged.
    """
    from depthdial.data.leakage import prompt_hashes
    from depthdial.report.study.tables import headline
    from depthdial.routes import split_routes
    from depthdial.studies.study import study as run
    from depthdial.views.adapted import adapted_view

    # The built-in texts are this project's own.
    texts = {"keep_text": True} if source.is_builtin else {}
    settings = how.settings(routes=tuple(split_routes(how.values["routes"])), **texts)
    held_out = calibration_split or source.held_out_split or "train"
    prompts = replace(source, split=held_out).read(calibration_limit)
    trained = trained_rows(loading.model, loading.adapter)
    used = trained.union(prompt_hashes(prompts))
    learned = rows_to_fit(source, controller_limit, used)
    is_whole_file = source.data is not None and source.data.is_file() and source.split is None and not calibration_split
    if is_whole_file and learned is None:  # nobody asked for a split: what is not searched on is judged
        sequences = unsearched(source.read(None), used, limit)
    else:
        sequences = source.read(limit, split="test")
    judged = [("to judge", sequences), ("to fit a controller", learned)]
    tell_rows(source, [("trained on", trained), ("to search", prompts), *judged], None if is_whole_file else "test")
    loaded, tokenizer = replace(loading, adapter=None).load()
    result = run(
        loaded,
        tokenizer,
        adapted=adapted_view(loaded, loading.adapter, loading.model) if loading.adapter else None,
        task=sequences,
        calibration=prompts,
        controller_rows=learned,
        out=out,
        settings=settings,
        keep=keep,
        name=loading.model,
        say=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    print_rows(
        f"{loading.model} on {sequences.name}: {len(sequences.examples)} sequences",
        headline(result.rows, result.oracles, timing=result.timing),
    )
    if result.controller is not None:
        print_scores(result.controller)
    typer.echo(f"report: {result.report}")
    typer.echo("\n".join(filter(None, (result.verdict.sentence, result.verdict.next_line))))


for verb in (
    study,
    generate,
    compare,
    search,
    sweep,
    report,
    check,
    certify,
    bench,
    warmup,
    routes,
    finetune,
    serve,
    export,
):
    app.command()(verb)
for verb in (oracle, forecast, similarity, search_study, gates_study, train_gates):
    app.command(rich_help_panel="Research")(verb)
app.add_typer(controller, name="controller", rich_help_panel="Research")


app.command("eval")(evaluate)


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """A depth dial for pretrained decoder-only language models."""


def main() -> None:
    """Run the command line; bad input exits with 2, a stop by Ctrl-C with 130."""
    prepare_console()
    show_notices()
    try:
        status = app(standalone_mode=False, prog_name="depthdial")
    except InputError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _STOPPED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # click's own errors of usage; a command without a verb is one too, and its message the help
        message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        _fail(f"{message}: see depthdial --help.", 2)
    if status == _STOPPED:  # typer turns Ctrl-C into this status, and outside its standalone mode returns it
        _fail("stopped; the same command goes on from here.", _STOPPED)
    sys.exit(status or 0)


_STOPPED = 130


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"depthdial: {message}", err=True)
    sys.exit(status)
