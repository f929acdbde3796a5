"""The verb `serve`: an OpenAI-compatible server of one model at many depths."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

ServeOptions = options_of(
    "serve.settings:ServeSettings",
    "Server",
    common=("host", "port", "depth", "shadow", "api_keys"),
    names={"depth": ("--depth", "--route")},
)


@options.with_bundles
def serve(
    loading: options.ModelOptions,
    how: Annotated[Given, ServeOptions],
    controller: Annotated[Path | None, typer.Option(help="A controller's folder: what the depth controller means.")] = None,
    routes: Annotated[
        list[Path] | None,
        typer.Option(help="A route family file, whose routes get model ids; numbers choose from the first one."),
    ] = None,
) -> None:
    """Serve a model at many depths to OpenAI's clients: chats, completions, streams, metrics."""
    settings = how.settings()
    _require_extra()
    from depthdial.routes.families import RouteFamily
    from depthdial.serve.guard import read_keys
    from depthdial.serve.run import run_server

    read_keys(settings.api_keys)  # what can be refused without the model is refused here
    families = [RouteFamily.load(path) for path in routes or ()]

    def load() -> object:
        from depthdial.control.controller import SequenceController
        from depthdial.serve.service import Served

        chosen = None if controller is None else SequenceController.from_pretrained(controller)
        model, tokenizer = loading.load()
        name = Path(loading.model).name.removesuffix(".gguf") or "model"
        return Served.of(model, tokenizer, name, settings, families=families, controller=chosen)

    run_server(load, settings, lambda line: typer.echo(line, err=True))  # type: ignore[arg-type]


def _require_extra() -> None:
    missing = next((name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(f"The server needs the package {missing}: pip install 'depthdial[serve]'.")
