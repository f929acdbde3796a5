"""Options that verbs share, in bundles.

A verb that takes a bundle (a dataclass of options) gets its fields as options of its own: see `with_bundles`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from depthdial.cli.settings import options_of
from depthdial.errors import InputError
from depthdial.files import check_out_file, check_out_folder

if TYPE_CHECKING:
    from depthdial.data.tasks import Task


def _in(panel: str) -> Callable[..., Any]:
    return lambda help, *names: typer.Option(*names, help=help, rich_help_panel=panel)


_model, _data, _size = map(_in, ("Model", "Data", "Size"))


def out_file(path: Path | None) -> Path | None:
    """A file to write, once it is sure that this can be done: before anything is loaded or run."""
    return path if path is None else check_out_file(path)


def named_files(depths: str | None) -> str | None:
    """Depths, once it is sure that the family files they name are there: before a model is loaded."""
    from depthdial.routes import split_routes
    from depthdial.routes.families import is_file

    text = depths or ""
    if is_file(text) or is_file(text.rpartition(":")[0]):  # a name may hold commas
        return depths
    for part in split_routes(text):
        file = part if part.lower().endswith(".json") else part.rpartition(":")[0]
        if file.lower().endswith(".json") and not is_file(file):
            raise InputError(f"There is no route family file {file}: check the path.")
    return depths


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, smollm2-135m or qwen2.5-coder-1.5b.")
]
_DEPTHS = "Routes such as full,uls:50%,ee:12; shares (80%), counts, FILE:24 or searched:24; or a route family file."
Routes = Annotated[str | None, typer.Option("--depth", "--routes", "--route", help=_DEPTHS, callback=named_files)]
PromptDepth = Annotated[str, typer.Option(help="full (the prompt runs every layer) or route.")]
OutFolder = Annotated[
    Path, typer.Option("--out", help="Folder for the results; a stopped run goes on there.", callback=check_out_folder)
]
Keep = Annotated[float, typer.Option(help="Share of the full model's quality that routes must keep, for the verdict.")]
RowsFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a study.")]
TemplateName = Annotated[str | None, _data("auto, chat, paper or plain.", "--template")]
CalibrationSplit = Annotated[str | None, _data("Default: calibration or train.")]
Limit = Annotated[int | None, _size("Use the first so many sequences.")]
BatchSize = Annotated[int, _size("Sequences run together.")]
NewTokens = Annotated[int, _size("Longest answer, in tokens.", "--max-new-tokens")]
CalibrationLimit = Annotated[int, _size("Prompts to search on.")]
ControllerLimit = Annotated[int, _size("Train rows to fit a controller on; 0: no controller.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded: the options of `dd.load`."""

    model: ModelName
    dtype: Annotated[str, _model("auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str | None, _model("cpu, cuda, mps; default: CUDA if there is any.")] = None
    device_map: Annotated[str | None, _model("accelerate's placement, such as auto.")] = None
    allow_bin: Annotated[bool, _model("Also load .bin weights (weights_only).", "--allow-bin")] = False
    trust_remote_code: Annotated[bool, _model("Run the checkpoint's own Python code.", "--trust-remote-code")] = False
    adapter: Annotated[str | None, _model("Folder of a PEFT adapter, or elastic.")] = None

    @property
    def words(self) -> list[str]:
        """As arguments of a command line."""
        return [self.model, *(() if self.adapter is None else ("--adapter", self.adapter))]

    @property
    def label(self) -> str:
        """What a merged model is called."""
        return self.model if self.adapter is None else f"{self.model} + {self.adapter}"

    def load(self) -> Any:
        """(model, tokenizer)"""
        from depthdial.hf.load import load

        return load(self.model, **{name: value for name, value in vars(self).items() if name != "model"})

    def measuring(self, loaded: Any, out: Path) -> dict[str, Any]:
        """What all that measures takes: where results go, what was loaded, and that progress is shown."""
        from depthdial.measure.plan import ModelIdentity

        return {"out": out, "identity": ModelIdentity.of(loaded, self.model), "progress": True}

    def studying(self, out: Path) -> dict[str, Any]:
        """What a study takes: where results go, the model's name, and that steps and progress are told."""
        return {"out": out, "name": self.label, "say": lambda line: typer.echo(line, err=True), "progress": True}


@dataclass(frozen=True)
class DataOptions:
    """Which sequences: the options of `dd.task`."""

    data: Annotated[
        Path | None, typer.Option(help="JSONL, CSV or Parquet file, a folder of splits, or - for standard input.")
    ] = None
    task: Annotated[str | None, _data("builtin, alpaca, cnn_dailymail, samsum or dolly.", "--task")] = None
    split: Annotated[str | None, _data("train, validation, test, ..; default: test, or a file whole.")] = None
    fields: Annotated[
        str | None, _data("Names of fields, where they are not known ones: prompt=article,reference=highlights")
    ] = None
    template: TemplateName = None
    max_prompt_tokens: Annotated[int | None, _data("Cut prompts to this.", "--max-prompt-tokens")] = None
    max_response_tokens: Annotated[int | None, _data("Cut references to this.", "--max-response-tokens")] = None
    seed: Annotated[int, _data("Divides a file into splits.")] = 0

    @property
    def words(self) -> list[str]:
        """As arguments of a command line."""
        given = {"--data": self.data, "--task": self.task}
        return [word for option, value in given.items() if value is not None for word in (option, str(value))]

    @property
    def origin(self) -> str | Path:
        return self.data if self.data is not None else self.task or "builtin"

    @property
    def other_words(self) -> list[str]:
        """The same for rows that a verb has not used: of a file, which a search or a training uses whole, another one."""
        return ["--data", "OTHER.jsonl"] if self.is_whole else self.words

    @property
    def is_whole(self) -> bool:
        """Whether it is a file, which has no splits of its own."""
        return self.data is not None and not self.data.is_dir()

    @property
    def is_builtin(self) -> bool:
        return self.data is None and self.task in (None, "builtin")

    @property
    def held_out_split(self) -> str | None:
        """The split to search on by default: never the one to evaluate on. A file given to a search is used whole."""
        from depthdial.data.sources import held_out_split

        return held_out_split(self.origin)

    def read(self, limit: int | None, split: str | None = None) -> Task:
        """The sequences, of `split` where `--split` does not say otherwise."""
        from depthdial.data.fields import parse_fields
        from depthdial.data.tasks import task

        if self.data is not None and self.task is not None:
            raise InputError("--data and --task both say what to measure on: give one of them.")
        given = {name: value for name, value in vars(self).items() if name not in ("data", "task")}
        fields = None if self.fields is None else parse_fields(self.fields)
        return task(self.origin, limit=limit, **{**given, "split": self.split or split, "fields": fields})


def with_bundles(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` for typer: each parameter that is a bundle is replaced by the bundle's options, and put together again.

    A bundle is a dataclass of options, or `Annotated[Given, options_of(..)]`.
    """
    bundles: dict[str, tuple[list[str], Callable[..., Any]]] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in _parameters(verb).items():
        kind = parameter.annotation
        found = next((one for one in getattr(kind, "__metadata__", ()) if isinstance(one, options_of)), None)
        if found is None and not (isinstance(kind, type) and is_dataclass(kind)):
            flat.append(parameter)
            continue
        own = _parameters(kind) if found is None else found.parameters()
        bundles[name] = list(own), found or kind
        flat += own.values()

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        for name, (options, build) in bundles.items():
            given[name] = build(**{option: given.pop(option) for option in options})
        verb(**given)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def _parameters(of: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """By keyword, with their annotations resolved."""
    hints = get_type_hints(of, include_extras=True)
    found = inspect.signature(of).parameters.items()
    return {name: one.replace(annotation=hints[name], kind=one.KEYWORD_ONLY) for name, one in found}
