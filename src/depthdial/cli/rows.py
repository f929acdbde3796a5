"""The line on rows: how many are searched, fitted, trained or certified on, how many are judged, how many are left over."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from depthdial.cli.options import DataOptions
from depthdial.errors import InputError

if TYPE_CHECKING:
    from depthdial.data.tasks import Task


def tell_rows(
    source: DataOptions, parts: Iterable[tuple[str, Task | Collection[str] | None]], split: str | None = None
) -> None:
    """Print one line: "rows: 16 searched, 40 to judge, 4 unused".

    Args:
        parts: what is or was done with which rows: a task, or the prompts' hashes; empty ones are left out.
        split: of the source, whose rows are unused if they are in no part; `--split` wins.
    """
    from depthdial.data.leakage import prompt_hashes
    from depthdial.data.tasks import Task

    told, used = [], set()
    for what, rows in parts:
        hashes = prompt_hashes(rows) if isinstance(rows, Task) else frozenset(rows or ())
        used |= set(hashes)
        told += [f"{len(hashes)} {what}"] if hashes else []
    unused = _unused(source, used, split)
    typer.echo(f"rows: {', '.join([*told, *([] if unused is None else [f'{unused} unused'])])}")


def made_on(routes: Iterable[Any] = (), model: Any = None) -> list[tuple[str, Collection[str]]]:
    """Parts for `tell_rows`: what routes were searched on, and what gates, a model and its adapter were trained on."""
    from depthdial.data.leakage import SEARCHED, seen_before

    seen = seen_before(routes, model)
    searched = seen.pop(SEARCHED, frozenset())
    return [("searched", searched), ("trained on", frozenset().union(*seen.values()))]


def trained_rows(model: str, adapter: str | None) -> frozenset[str]:
    """Hashes of the prompts that a model and an adapter in folders say they were trained on, before either is loaded."""
    from depthdial.hf.trained import prompts_of_folder

    folders = [Path(one).expanduser() for one in (model, adapter) if one and one != "elastic"]
    return frozenset().union(*map(prompts_of_folder, folders))


def _unused(source: DataOptions, used: Collection[str], split: str | None) -> int | None:
    from depthdial.data.leakage import prompt_hashes

    # Standard input is read once and the Hub's sets are large: of these nothing is called unused.
    if not source.is_builtin and not (source.data and (source.data.is_file() or source.data.is_dir())):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said already, of the rows that are used
        try:
            rows = source.read(None, split=split)
        except InputError:  # in a row behind those that were asked for
            return None
    return sum(one not in used for one in prompt_hashes(rows))
