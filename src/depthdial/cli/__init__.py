"""The command line: verbs only, one file for each group."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("app", "main"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.app")
    return module if name == "app" else module.main
