"""The harness's tasks by name: near names for what is unknown, groups and tags as their tasks, data that fails to load."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager

from depthdial.errors import InputError, one_line
from depthdial.evals import local_tasks
from depthdial.evals.harness import quiet_harness


@dataclass
class Catalogue:
    """Tasks to evaluate, in order, each loaded when it is needed and once.

    Attributes:
        names: of tasks, and of groups with a score of their own.
        n_shot: examples in every context; None for what each task says.
    """

    manager: Any
    names: tuple[str, ...]
    n_shot: int | None = None
    _loaded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tasks: Sequence[str], include_path: str | PathLike[str] | None = None, n_shot: int | None = None
    ) -> Catalogue:
        """Find tasks; names with `*` stand for all that fit.

        Args:
            include_path: a folder with task files of the caller's.

        Raises:
            InputError: for a task that is not known, or a group without a score whose tasks have no names.
        """
        if include_path is not None and not Path(include_path).is_dir():
            raise InputError(f"There is no folder {include_path} of task files: check --include-path.")
        if not tasks:
            raise InputError(f"No task was given: name at least one, such as {local_tasks.GROUP}.")
        own: list[str | Path] = [local_tasks.FOLDER, *([] if include_path is None else [Path(include_path)])]
        with quiet_harness():
            # The harness's own thousands of files take seconds, and are read where they are asked for.
            manager = TaskManager(include_path=own, include_defaults=False)
            if not all(manager.match_tasks([name]) for name in tasks):
                manager = TaskManager(include_path=own)
        found = [one for name in tasks for one in _expanded(manager, name)]
        return cls(manager, tuple(dict.fromkeys(found)), n_shot)

    def load(self, name: str) -> Any:
        """The harness's objects of a task or group.

        Raises:
            InputError: if its data or a package that it needs is not there.
        """
        if name not in self._loaded:
            try:
                with quiet_harness():
                    loaded = self.manager.load([name])
            except ImportError as error:
                raise InputError(f"The task {name!r} needs a package ({one_line(error)}): install it.") from error
            except (OSError, RuntimeError) as error:  # no network, no such data set
                raise InputError(
                    f"The data of the task {name!r} cannot be loaded ({one_line(error)}): check the connection, or take "
                    f"--tasks {local_tasks.GROUP}, which needs none."
                ) from error
            for task in loaded["tasks"].values():
                _set_shots(task, self.n_shot)
            self._loaded[name] = loaded
        return self._loaded[name]


def _expanded(manager: Any, name: str) -> list[str]:
    """The units that a name stands for."""
    found = manager.match_tasks([name])
    if not found:
        near = difflib.get_close_matches(name, manager.all_tasks, 3, 0.6)
        told = f"use {' or '.join(near or [local_tasks.GROUP])}, or another one that"
        raise InputError(f"There is no task {name!r}: {told} `lm_eval ls tasks` lists.")
    return [unit for one in sorted(found) for unit in _units(manager, one)]


def _units(manager: Any, name: str) -> list[str]:
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    config = entry.cfg or {}
    if entry.kind.name != "GROUP" or config.get("aggregate_metric_list"):
        return [name]
    members = config.get("task") or []
    if not all(isinstance(one, str) and one in manager.task_index for one in members):
        raise InputError(f"The group {name!r} has no score of its own: give its tasks.")
    return [unit for one in members for unit in _units(manager, one)]


def _set_shots(task: Any, n_shot: int | None) -> None:
    """As the harness's own `simple_evaluate`: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own != 0:
        task.set_config(key="num_fewshot", value=(own or 0) if n_shot is None else n_shot)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
