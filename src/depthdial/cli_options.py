"""Options that verbs share, and what they stand for: a loaded model, a task, a table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.measure.tasks import Task

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
AnswerTokens = Annotated[int, typer.Option(help="Length of the answers compared.", rich_help_panel=_SIZE)]
CalibrationSplit = Annotated[str | None, typer.Option(help="Default: calibration or train.", rich_help_panel=_DATA)]
CalibrationLimit = Annotated[int, typer.Option(help="Prompts to search on.", rich_help_panel=_SIZE)]
FidelityTokens = Annotated[int, typer.Option(help="Tokens of the full answers for KL.", rich_help_panel=_SIZE)]
Routes = Annotated[str, typer.Option(help="Routes such as full,uls:50%,ee:12, or a route family file.")]
PromptDepth = Annotated[str, typer.Option(help="full (the prompt runs every layer) or route.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results; a stopped run goes on there.")]


def load_model(
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


def read_task(
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


def held_out_split(data: Path | None, name: str | None) -> str | None:
    """The split to search on by default: never the one to evaluate on. A file given to a search is used whole."""
    if data is not None:
        return "train" if data.is_dir() and len(list(data.iterdir())) > 1 else None
    return "calibration" if name in (None, "builtin") else "train"


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of the report's rows, under the report's names."""
    from depthdial.report.tables import COLUMN_LABELS, cell_text

    if rows:
        cells = [[cell_text(column, value) for column, value in row.items()] for row in rows]
        print_table(title, [COLUMN_LABELS.get(column, column) for column in rows[0]], cells)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; outside a terminal as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
