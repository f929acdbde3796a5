"""Modules by their old names are the very modules of today, in a fresh process and in any order."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from depthdial.moved import moved_modules


@pytest.mark.parametrize(("old", "new"), sorted(moved_modules().items()))
def test_an_old_name_is_the_module_of_today(old: str, new: str) -> None:
    module = import_module(new)
    assert import_module(old) is module
    assert module.__name__ == new and module.__spec__ is not None and module.__spec__.name == new


def test_scripts_of_before_run_and_what_never_was_is_not_found() -> None:
    code = """
from depthdial.cli import main
from depthdial.measure.tasks import Example
from depthdial.choose.hull import merge_increments
from depthdial.choose import knapsack
import depthdial.data.tasks, depthdial.oracles.exact.knapsack, depthdial.cli.app
assert Example is depthdial.data.tasks.Example and knapsack is depthdial.oracles.exact.knapsack
assert main is depthdial.cli.app.main
try:
    import depthdial.choose.nothing
except ModuleNotFoundError as error:
    assert error.name == "depthdial.choose.nothing"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
