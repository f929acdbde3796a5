"""Modules by the names that they had before the rooms: scripts that were written then go on to run.

An old name is the very module that stands elsewhere now. The finder answers to nothing else, and is asked last, for names of
this package that no file has.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "depthdial"
# (old folder, folder of today): modules, `old=new` where they are called otherwise.
_MOVED = {
    ("", "routes"): "families",
    ("choose", "control"): "controller controller_card=card controller_certify=certify controller_fit=fit "
    "controller_memory=memory controller_rows=rows prediction",
    ("choose", "control.judge"): "calibration=reliability gap=headroom gap_inputs=inputs",
    ("choose", "guarantee"): "guarantee=plan p_values risk_control",
    ("choose", "oracles"): "costs crossfit oracle policy=prices predictable score_table yardsticks=baselines",
    ("choose", "oracles.exact"): "core_search=core hull knapsack",
    ("choose.predictors", "control.predictors"): "base fitting ridge",
    ("choose.search", "search"): "calibration method run",
    ("generation", "engine"): "depths=depth engine=generate options requests streams",
    ("measure", ""): "provenance",
    ("measure", "data"): "apart=leakage chat fields readers sources splits tasks templates",
    ("measure", "engine"): "batches=session forced=teacher_forcing sampling",
    ("measure", "measure"): "prompt_features=features",
    ("measure", "rows"): "gate_rows=gates results=store",
    ("measure", "stats"): "equivalence stats=intervals",
    ("models", "engine"): "decode pooling prompt=prefill",
    (
        "models",
        "hf",
    ): "adapter architectures builtin checkpoint ends gguf_file=gguf known_routes load tokenizers untouched weights",
    ("models", "views"): "probe view",
    ("models", "views.tokens"): "gate_folder gates token_cache=cache token_depth=depth token_policy=policy token_view=view",
    ("report", "report.kit"): "page",
    ("train", "train.depth"): "finetune settings student",
    ("train", "train.gates"): "gate_settings=settings gate_training=training",
}


def _joined(*names: str) -> str:
    return ".".join(name for name in (PACKAGE, *names) if name)


def moved_modules() -> dict[str, str]:
    """Names of today by the old ones."""
    pairs = [(folders, (*entry.split("="), entry)) for folders, entries in _MOVED.items() for entry in entries.split()]
    return {_joined(old, names[0]): _joined(new, names[1]) for (old, new), names in pairs}


class _Moved(MetaPathFinder, Loader):
    """Finds the old names and their folders, and puts the module of today in the place of each name."""

    def __init__(self) -> None:
        self._names = moved_modules()
        self._folders = {name.rpartition(".")[0] for name in self._names}

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        known = name in self._names or name in self._folders
        return ModuleSpec(name, self, is_package=name in self._folders) if known else None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in self._names:
            sys.modules[module.__name__] = import_module(self._names[module.__name__])


def install() -> None:
    """Let old names be imported, in this process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
