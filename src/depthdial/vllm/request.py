"""The route that a user asks vLLM for: from `--hf-overrides`, $DEPTHDIAL_ROUTE, or the file beside the checkpoint."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.checks import choice
from depthdial.errors import InputError
from depthdial.routes import require_depth
from depthdial.routes.families import PROMPT_DEPTHS
from depthdial.routes.route_file import ROUTE_FILE, RouteFile

ROUTE, PROMPT_DEPTH = "depthdial_route", "depthdial_prompt_depth"
ROUTE_VARIABLE, PROMPT_DEPTH_VARIABLE = "DEPTHDIAL_ROUTE", "DEPTHDIAL_PROMPT_DEPTH"
_PREFIX = "depthdial_"


@dataclass(frozen=True)
class Request:
    """What was asked for, before the model is known.

    Attributes:
        route: a route in the grammar of `depthdial.routes`, or a route file's.
        prompt_depth: `full`: prompts run all layers, and answers those of the route; `route`: both run the route.
    """

    route: str | RouteFile
    prompt_depth: str = "full"

    def on(self, n_layers: int) -> Any:
        """The route on a model of `n_layers` layers.

        Raises:
            InputError: if it does not fit that model, or is a random rule.
        """
        from depthdial.views.view import as_route

        if isinstance(self.route, RouteFile):
            return require_depth(self.route.route, n_layers)
        return as_route(self.route, n_layers)


def requested(model: str | Path, overrides: Any) -> Request | None:
    """The route that is asked for a model; None where none is.

    `overrides` comes first, then the environment, then a `depthdial_route.json` in the model's folder.

    Args:
        model: folder or Hub id, as vLLM was given it.
        overrides: `--hf-overrides` as a mapping; a function is what vLLM passes for a
            draft model, which runs a route only if the file stands beside it, and prompts on the route.

    Raises:
        InputError: for an unknown option, an unknown prompt depth, or a route file that cannot be read.
    """
    if callable(overrides):
        beside = _beside(model)
        return _of(beside, "route" if beside else None)
    given = dict(overrides or {})
    _check_names(given)
    route = given.get(ROUTE) or os.environ.get(ROUTE_VARIABLE) or _beside(model)
    return _of(route, given.get(PROMPT_DEPTH) or os.environ.get(PROMPT_DEPTH_VARIABLE))


def _of(route: Any, prompt_depth: Any) -> Request | None:
    if prompt_depth is not None:
        choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    if not route:
        if prompt_depth is not None:
            raise InputError(f"A prompt depth ({prompt_depth}) without a route says nothing: give {ROUTE} as well.")
        return None
    if not isinstance(route, str):
        raise InputError(f"A route for vLLM is written as text, such as '0-3,8,12-29', not {route!r}: put it in quotes.")
    is_file = route.endswith(".json") or os.sep in route or Path(route).is_dir()
    return Request(RouteFile.load(Path(route).expanduser()) if is_file else route, prompt_depth or "full")


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if str(name).startswith(_PREFIX) and name not in (ROUTE, PROMPT_DEPTH):
            near = difflib.get_close_matches(name, (ROUTE, PROMPT_DEPTH), n=1, cutoff=0)
            raise InputError(f"Unknown option {name!r} in hf-overrides: did you mean {near[0]}?")


def _beside(model: str | Path) -> str | None:
    file = Path(model).expanduser() / ROUTE_FILE
    return str(file) if file.is_file() else None
