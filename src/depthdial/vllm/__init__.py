"""The plugin of vLLM that serves a route of an unmodified checkpoint.

vLLM finds it by the entry point `vllm.general_plugins` and calls `register` in each of its processes; nothing here imports
vLLM before. Where no route is given, vLLM stays as it is.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Have vLLM serve the route that `--hf-overrides`, $DEPTHDIAL_ROUTE or `depthdial_route.json` names.

    vLLM calls it. It may be called more than once in a process.
    """
    from depthdial.vllm import settings, weights

    settings.install()
    weights.install()
