"""The verb `serve`: an OpenAI-compatible server of one model at many depths."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.checks import whole
from depthdial.cli import options
from depthdial.cli.ray import OnRay, RayAddress, ray_settings
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
    on_ray: Annotated[Given, RayAddress],
    controller: Annotated[Path | None, typer.Option(help="A controller's folder: what the depth controller means.")] = None,
    routes: Annotated[
        list[Path] | None,
        typer.Option(help="A route family file, whose routes get model ids; numbers choose from the first one."),
    ] = None,
    ray: OnRay = False,
    replicas: Annotated[
        int | None, typer.Option(help="Of --ray: servers, each with a model of its own; default: 1.", rich_help_panel="Ray")
    ] = None,
) -> None:
    """Serve a model at many depths to OpenAI's clients: chats, completions, streams, metrics."""
    settings = how.settings()
    _require_extra()
    cluster = _replicas(ray, on_ray, replicas)
    from depthdial.routes.families import RouteFamily
    from depthdial.serve.guard import read_keys
    from depthdial.serve.run import run_server, tell_address

    keys = read_keys(settings.api_keys)  # what can be refused without the model is refused here
    families = [RouteFamily.load(path) for path in routes or ()]

    def load() -> Any:
        from depthdial.control.controller import SequenceController
        from depthdial.serve.service import Served

        chosen = None if controller is None else SequenceController.from_pretrained(controller)
        model, tokenizer = loading.load()
        name = Path(loading.model).name.removesuffix(".gguf") or "model"
        return Served.of(model, tokenizer, name, settings, families=families, controller=chosen)

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if cluster is None:
        run_server(load, settings, say)
        return

    from depthdial.scale.serving import serve_on_ray

    def build() -> object:
        """The server's application, in a replica; its model is loaded before it gets requests."""
        from depthdial.serve.app import create_app

        return create_app(load(), settings, keys=keys)

    address = tell_address(settings, keys, say)
    most = settings.max_rows + settings.max_waiting + _BESIDE
    serve_on_ray(build, cluster, **address, max_requests=most, on_ready=lambda: say("ready"))


_BESIDE = 64  # requests that a replica takes beside answers, such as for /health and what gets 429


def _replicas(ray: bool, on_ray: Given, replicas: int | None) -> Any:
    """Settings of Ray for servers; None where it is not asked for."""
    if replicas is not None:
        if not ray:
            raise InputError("--replicas is of servers on Ray: give --ray too.")
        whole("--replicas", replicas, 1)
    return ray_settings(ray, on_ray, ray_actors=(replicas or 1) if ray else None)


def _require_extra() -> None:
    missing = next((name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(f"The server needs the package {missing}: pip install 'depthdial[serve]'.")
