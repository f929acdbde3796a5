"""Options of verbs that run on Ray."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

OnRay = Annotated[bool, typer.Option("--ray", help="Run on Ray, in several processes.", rich_help_panel="Ray")]
RayOptions = options_of("scale.settings:RaySettings", "Ray")
RayAddress = options_of("scale.settings:RaySettings", "Ray", only=("ray_address",))


def ray_settings(is_asked: bool, given: Given, **more: Any) -> Any:
    """The settings of a run on Ray; None where it is not asked for.

    Raises:
        InputError: for an option of Ray without --ray, or where Ray is not installed.
    """
    from depthdial.scale.settings import RaySettings, require_ray

    values = {**given.read(), **more}
    if not is_asked:
        unused = next((name for name, value in values.items() if value is not None), None)
        if unused is not None:
            raise InputError(f"--{unused.replace('_', '-')} is of runs on Ray: give --ray too.")
        return None
    settings = RaySettings(**values)
    require_ray()
    return settings
