"""The command line: one verb, one function of the library. Imports lazily, so that `--help` loads neither torch nor more.

Bad input ends with exit status 2 and one sentence; anything else that goes wrong is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.measure.tasks import Task

app = typer.Typer(
    name="depthdial",
    help="A depth dial for pretrained decoder-only language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MODEL, _DATA, _SIZE = "Model", "Data", "Size"

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_MODEL)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: CUDA if there is any.", rich_help_panel=_MODEL)]
DeviceMap = Annotated[str | None, typer.Option(help="accelerate's placement, such as auto.", rich_help_panel=_MODEL)]
AllowBin = Annotated[
    bool, typer.Option("--allow-bin", help="Also load .bin weights (weights_only).", rich_help_panel=_MODEL)
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.", rich_help_panel=_MODEL)
]
Adapter = Annotated[str | None, typer.Option(help="Folder of a PEFT adapter.", rich_help_panel=_MODEL)]

Data = Annotated[Path | None, typer.Option(help="JSONL, CSV or Parquet file, or a folder of splits.", rich_help_panel=_DATA)]
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="builtin, alpaca, cnn_dailymail, samsum or dolly.", rich_help_panel=_DATA),
]
Split = Annotated[
    str | None, typer.Option(help="train, validation, test, ..; default: see the docs.", rich_help_panel=_DATA)
]
Fields = Annotated[
    str | None, typer.Option(help="Names of fields: prompt=article,reference=highlights", rich_help_panel=_DATA)
]
TemplateName = Annotated[str | None, typer.Option("--template", help="auto, chat, paper or plain.", rich_help_panel=_DATA)]
PromptTokens = Annotated[int | None, typer.Option("--max-prompt-tokens", help="Cut prompts to this.", rich_help_panel=_DATA)]
ResponseTokens = Annotated[
    int | None, typer.Option("--max-response-tokens", help="Cut references to this.", rich_help_panel=_DATA)
]
Seed = Annotated[int, typer.Option(help="Divides a file into splits.", rich_help_panel=_DATA)]
Limit = Annotated[int | None, typer.Option(help="Use the first so many sequences.", rich_help_panel=_SIZE)]
BatchSize = Annotated[int, typer.Option(help="Sequences run together.", rich_help_panel=_SIZE)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.", rich_help_panel=_SIZE)]
Routes = Annotated[str, typer.Option(help="Routes such as full,uls:50%,ee:12, or a route family file.")]
PromptDepth = Annotated[str, typer.Option(help="full (the prompt runs every layer) or route.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results; a stopped run goes on there.")]


@app.command()
def routes(
    layers: Annotated[int, typer.Option(help="Number of layers of the model.")],
    family: Annotated[str | None, typer.Option(help="ee, uls, rls, rls-wo1 or unified: every cost of it.")] = None,
    routes: Annotated[str | None, typer.Option(help="Routes, or a route family file, instead of a family.")] = None,
    seed: Annotated[int, typer.Option(help="Of a random family.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also draw them: a .png or .svg file.")] = None,
) -> None:
    """Print and plot which layers run (the paper's Figure 3)."""
    from depthdial.families import read_routes
    from depthdial.report.routes_plot import family_text, plot_family
    from depthdial.routes import family_routes

    if (family is None) == (routes is None):
        raise InputError("Say which routes to show: either --family uls or --routes full,uls:50%.")
    chosen = family_routes(family, layers, seed=seed) if family else read_routes(routes or "", layers)
    typer.echo(family_text(chosen))
    if out is not None:
        typer.echo(f"drawn in {plot_family(chosen, out)}")


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    route: Annotated[str, typer.Option(help="Which layers run: full, uls:50%, drop:12,17, ..")] = "full",
    prompt_depth: PromptDepth = "full",
    max_new_tokens: NewTokens = 128,
    template: TemplateName = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    allow_bin: AllowBin = False,
    trust_remote_code: RemoteCode = False,
    adapter: Adapter = None,
) -> None:
    """Answer one prompt on one route; the text streams, then layers run and tokens per second."""
    from depthdial.generation.engine import generate as answer

    loaded, tokenizer = _load(model, dtype, device, device_map, allow_bin, trust_remote_code, adapter)
    result = answer(
        loaded,
        tokenizer,
        prompt,
        depth=route,
        prompt_depth=prompt_depth,
        max_new_tokens=max_new_tokens,
        template=template or "auto",
        on_text=lambda piece: typer.echo(piece, nl=False),
    )[0]
    speed = f"{result.tokens_per_sec:.1f} tokens/s" if result.new_tokens > 1 else "one token, from the prompt's pass"
    typer.echo(
        f"\n\n{len(result.route)} of {result.route.n_layers} layers · {result.new_tokens} tokens · {speed} · "
        f"prompt {result.prefill_sec:.2f} s ({prompt_depth} depth)",
        err=True,
    )


@app.command()
def search(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The route family file to write (.json).")],
    data: Data = None,
    task: TaskName = None,
    split: Split = None,
    fields: Fields = None,
    template: TemplateName = None,
    max_prompt_tokens: PromptTokens = None,
    seed: Seed = 0,
    limit: Limit = 24,
    min_layers: Annotated[int | None, typer.Option(help="Search down to so many; default: half.")] = None,
    screen: Annotated[int, typer.Option(help="Layers tried in each round after the first; 0: all.")] = 8,
    answer_tokens: Annotated[int, typer.Option(help="Length of the answers compared.", rich_help_panel=_SIZE)] = 16,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    allow_bin: AllowBin = False,
    trust_remote_code: RemoteCode = False,
    adapter: Adapter = None,
) -> None:
    """Find which layers a model can do without: nested routes by KL, on calibration prompts."""
    from depthdial.choose.search import search_routes
    from depthdial.measure.plan import ModelIdentity

    prompts = _task(data, task, split or _held_out(data, task), fields, template, limit, seed, max_prompt_tokens, None)
    loaded, tokenizer = _load(model, dtype, device, device_map, allow_bin, trust_remote_code, adapter)
    family = search_routes(
        loaded,
        tokenizer,
        task=prompts,
        min_layers=min_layers,
        screen=screen or None,
        answer_tokens=answer_tokens,
        batch_size=batch_size,
        out=out,
        identity=ModelIdentity.of(loaded, model),
        progress=True,
    )
    steps = zip(family.made_by["drop_order"], family.made_by["kl"], strict=True)
    n_left = [(family.n_layers - i, *step) for i, step in enumerate(steps, start=1)]
    _table("Layers dropped", ["layers left", "dropped", "KL (nats)"], [[n, layer, f"{kl:.3f}"] for n, layer, kl in n_left])
    typer.echo(f"routes: {out}")


@app.command()
def similarity(
    model: ModelName,
    out: OutFolder,
    data: Data = None,
    task: TaskName = None,
    routes: Annotated[str | None, typer.Option(help="Default: every cost of every family.")] = None,
    split: Split = None,
    fields: Fields = None,
    template: TemplateName = None,
    max_prompt_tokens: PromptTokens = None,
    max_response_tokens: ResponseTokens = None,
    seed: Seed = 0,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    fidelity_tokens: Annotated[int, typer.Option(help="Tokens of the answers for KL.", rich_help_panel=_SIZE)] = 128,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    allow_bin: AllowBin = False,
    trust_remote_code: RemoteCode = False,
    adapter: Adapter = None,
) -> None:
    """How close a route's hidden states stay to the full model's (Figures 1a, 4, 5)."""
    from depthdial.families import read_routes
    from depthdial.measure.plan import ModelIdentity
    from depthdial.measure.similarity import similarity as compare
    from depthdial.models.architectures import count_layers
    from depthdial.report.tables import similarity_table

    sequences = _task(data, task, split, fields, template, limit, seed, max_prompt_tokens, max_response_tokens)
    loaded, tokenizer = _load(model, dtype, device, device_map, allow_bin, trust_remote_code, adapter)
    rows = compare(
        loaded,
        tokenizer,
        task=sequences,
        routes=None if routes is None else read_routes(routes, count_layers(loaded)),
        out=out,
        batch_size=batch_size,
        max_response_tokens=max_response_tokens,
        fidelity_tokens=fidelity_tokens,
        identity=ModelIdentity.of(loaded, model),
        progress=True,
    )
    _print_rows("Similarity to the full model (mean and 95% interval over sequences)", similarity_table(rows))
    typer.echo(f"rows: {out / 'rows.parquet'}")


@app.command()
def sweep(
    model: ModelName,
    routes: Routes,
    out: OutFolder,
    data: Data = None,
    task: TaskName = None,
    metrics: Annotated[str, typer.Option(help="Some of rouge_l, nll, kl, agreement.")] = "rouge_l,nll,kl,agreement",
    split: Split = None,
    fields: Fields = None,
    template: TemplateName = None,
    max_prompt_tokens: PromptTokens = None,
    max_response_tokens: ResponseTokens = None,
    seed: Seed = 0,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    max_new_tokens: NewTokens = 128,
    prompt_depth: PromptDepth = "full",
    use_stemmer: Annotated[bool, typer.Option("--use-stemmer", help="ROUGE with stems; the paper does without.")] = False,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep the answers in the rows.")] = False,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    allow_bin: AllowBin = False,
    trust_remote_code: RemoteCode = False,
    adapter: Adapter = None,
) -> None:
    """Run every sequence on every route: quality, theoretical cost and measured time, one row each."""
    from depthdial.families import read_routes
    from depthdial.measure.plan import ModelIdentity
    from depthdial.measure.sweep import sweep as run
    from depthdial.models.architectures import count_layers
    from depthdial.report.tables import headline

    sequences = _task(data, task, split, fields, template, limit, seed, max_prompt_tokens, max_response_tokens)
    loaded, tokenizer = _load(model, dtype, device, device_map, allow_bin, trust_remote_code, adapter)
    rows = run(
        loaded,
        tokenizer,
        task=sequences,
        routes=read_routes(routes, count_layers(loaded)),
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        out=out,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        prompt_depth=prompt_depth,
        use_stemmer=use_stemmer,
        keep_text=keep_text,
        identity=ModelIdentity.of(loaded, model),
        progress=True,
    )
    _print_rows(f"{sequences.name}: {len(sequences.examples)} sequences", headline(rows))
    typer.echo(f"rows: {out / 'rows.parquet'}")


@app.command()
def oracle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a study.")],
    metric: Annotated[str, typer.Option(help="Column to maximise (kl and nll: minimise).")] = "rouge_l",
    cost: Annotated[str, typer.Option(help="Column to spend: layers_run, decode_flops, decode_sec, ..")] = "layers_run",
    weight_by: Annotated[str | None, typer.Option(help="Weigh costs by a column, such as new_tokens.")] = None,
    budget: Annotated[float | None, typer.Option(help="Also solve for this mean cost per sequence.")] = None,
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
) -> None:
    """The best route for every sequence under a global budget (Figure 2)."""
    from depthdial.choose.oracle import oracle as choose
    from depthdial.studies import keep_oracle, read_study_rows

    curve = choose(read_study_rows(folder), metric=metric, cost=cost, weight_by=weight_by, seed=seed)
    _print_rows(f"Oracle by {metric}, spending {cost}", curve.table())
    if budget is not None:
        choice = curve.pick(budget)
        counts = {name: int((choice == i).sum()) for i, name in enumerate(curve.routes)}
        typer.echo(f"at a budget of {budget:g}: " + ", ".join(f"{n} x {name}" for name, n in counts.items() if n))
    typer.echo(f"curve: {keep_oracle(folder, curve, weight_by)}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a study.")]) -> None:
    """Draw the figures of a folder's rows and write one self-contained page."""
    from depthdial.report.page import write_report

    typer.echo(f"report: {write_report(folder)}")


@app.command()
def study(
    model: ModelName,
    out: OutFolder,
    data: Data = None,
    task: TaskName = None,
    routes: Annotated[str | None, typer.Option(help="Beside the searched ones; default: full, ULS, EE.")] = None,
    split: Split = None,
    calibration_split: Annotated[
        str | None, typer.Option(help="Default: calibration or train.", rich_help_panel=_DATA)
    ] = None,
    fields: Fields = None,
    template: TemplateName = None,
    max_prompt_tokens: PromptTokens = None,
    max_response_tokens: ResponseTokens = None,
    seed: Seed = 0,
    limit: Limit = None,
    calibration_limit: Annotated[int, typer.Option(help="Prompts to search on.", rich_help_panel=_SIZE)] = 16,
    batch_size: BatchSize = 16,
    max_new_tokens: NewTokens = 48,
    prompt_depth: PromptDepth = "full",
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep the answers in the rows.")] = False,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    allow_bin: AllowBin = False,
    trust_remote_code: RemoteCode = False,
    adapter: Adapter = None,
) -> None:
    """Search, similarity, sweep, oracle and report, in one folder; started again, it goes on."""
    from depthdial.report.tables import headline
    from depthdial.routes import split_routes
    from depthdial.studies import StudySettings
    from depthdial.studies import study as run

    is_builtin = data is None and task in (None, "builtin")
    settings = StudySettings(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        prompt_depth=prompt_depth,
        routes=tuple(split_routes(routes or "")),
        keep_text=keep_text or is_builtin,  # the built-in texts are this project's own
    )
    sequences = _task(data, task, split or "test", fields, template, limit, seed, max_prompt_tokens, max_response_tokens)
    held_out = calibration_split or _held_out(data, task) or "train"
    prompts = _task(data, task, held_out, fields, template, calibration_limit, seed, max_prompt_tokens, max_response_tokens)
    loaded, tokenizer = _load(model, dtype, device, device_map, allow_bin, trust_remote_code, adapter)
    result = run(
        loaded,
        tokenizer,
        task=sequences,
        calibration=prompts,
        out=out,
        settings=settings,
        name=model,
        say=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    _print_rows(f"{model} on {sequences.name}: {len(sequences.examples)} sequences", headline(result.rows, result.oracles))
    typer.echo(f"report: {result.report}")


def main() -> None:
    """Run the command line; bad input exits with 2, a stop by Ctrl-C with 130."""
    try:
        app(standalone_mode=False, prog_name="depthdial")
    except InputError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; the same command goes on from here.", 130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own errors of usage
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        raise


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"depthdial: {message}", err=True)
    sys.exit(status)


def _load(
    name: str,
    dtype: str,
    device: str | None,
    device_map: str | None,
    allow_bin: bool,
    trust_remote_code: bool,
    adapter: str | None,
) -> Any:
    from depthdial.models.load import load

    return load(
        name,
        dtype=dtype,
        device=device,
        device_map=device_map,
        allow_bin=allow_bin,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
    )


def _task(
    data: Path | None,
    name: str | None,
    split: str | None,
    fields: str | None,
    template: str | None,
    limit: int | None,
    seed: int,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
) -> Task:
    from depthdial.measure.fields import parse_fields
    from depthdial.measure.tasks import task

    if data is not None and name is not None:
        raise InputError("--data and --task both say what to measure on: give one of them.")
    return task(
        data if data is not None else name or "builtin",
        split=split,
        limit=limit,
        seed=seed,
        template=template,
        fields=None if fields is None else parse_fields(fields),
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )


def _held_out(data: Path | None, name: str | None) -> str | None:
    """The split to search on by default: never the one to evaluate on. A file given to a search is used whole."""
    if data is not None:
        return None
    return "calibration" if name in (None, "builtin") else "train"


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        _table(title, list(rows[0]), [list(row.values()) for row in rows])


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(
            *("" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row)
        )
    Console().print(table)
