"""The names of `depthdial` are a contract; and naming them, or asking for help, loads no model library."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import depthdial as dd

HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "pandas", "datasets", "numpy", "jinja2", "gguf")
CONTRACT = {  # what other work is checked against; there may be more, never less
    "load", "view", "Route", "sweep", "task", "oracle", "solve_budget", "generate", "study", "search_routes", "similarity",
    "write_report", "SequenceController", "Engine", "RouteFamily", "family_routes", "InputError", "untouched",
    "adapter_card",
}  # fmt: skip


def python(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=check)


@pytest.mark.parametrize("name", dd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(dd, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__module__.startswith("depthdial.")
    assert inspect.getdoc(value)
    assert name in dir(dd)


def test_the_contract_holds() -> None:
    assert set(dd.__all__) >= CONTRACT
    assert dd.__all__ == sorted(set(dd.__all__))


def test_a_star_import_brings_them_all() -> None:
    namespace: dict[str, object] = {}
    exec("from depthdial import *", namespace)
    assert set(dd.__all__) == namespace.keys() - {"__builtins__"}


@pytest.mark.parametrize("name", ["nonsense", "Generate", "_load", "torch"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"No depthdial attribute {name}"):
        getattr(dd, name)
    assert not hasattr(dd, name)


@pytest.mark.parametrize(
    "module", ["engine.generate", "measure.sweep", "views.view", "report.pages", "studies.study", "oracles.oracle"]
)
def test_a_room_never_hides_a_function(module: str) -> None:
    # A submodule becomes an attribute of the package when it is imported, and would then win over a lazy name.
    import_module(f"depthdial.{module}")
    for name in dd.__all__:
        assert not inspect.ismodule(getattr(dd, name))
    assert inspect.isfunction(dd.generate)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, depthdial; dir(depthdial); print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
    code = f"import sys, depthdial as dd; dd.Route, dd.RouteFamily; print([n for n in {HEAVY} if n in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


VERBS = ("routes", "generate", "search", "similarity", "sweep", "oracle", "report", "study", "bench", "forecast")


HELP_OF_ALL = """
import sys
from depthdial.cli.app import main
for verb in sys.argv[1:]:
    sys.argv = ["depthdial", *filter(None, [verb]), "--help"]
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
print("loaded:", [name for name in HEAVY if name in sys.modules])
"""


def test_help_loads_nothing_heavy() -> None:
    out = python("-c", HELP_OF_ALL.replace("HEAVY", repr(HEAVY)), "", *VERBS).stdout
    assert all(f"Usage: depthdial {verb}" in out for verb in VERBS)
    assert out.strip().splitlines()[-1] == "loaded: []"


def test_help_answers_in_under_a_second_of_work() -> None:
    """Of processor time, best of three: the clock on the wall tells of the other processes of a machine too."""
    seconds = []
    for _ in range(3):
        started = os.times()
        run = python("-m", "depthdial", "--help")
        ended = os.times()
        seconds.append(ended.children_user - started.children_user + ended.children_system - started.children_system)
        assert all(verb in run.stdout for verb in VERBS)
    assert 0 < min(seconds) < 1.0


def test_the_module_and_the_command_are_one() -> None:
    command = Path(sys.executable).with_name("depthdial")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    for arguments in (["--help"], ["routes", "--help"], ["nonsense"]):
        installed = subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, check=False)
        module = python("-m", "depthdial", *arguments, check=False)
        assert (installed.returncode, installed.stdout, installed.stderr) == (
            module.returncode,
            module.stdout,
            module.stderr,
        )


@pytest.mark.parametrize(
    "name", ["view", "sweep", "similarity", "oracle", "predictable_oracle", "task", "study", "search_routes"]
)
def test_unknown_keywords_are_refused(name: str) -> None:
    function = getattr(dd, name)
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_option'"):
        function(no_such_option=1)


def test_the_package_is_typed() -> None:
    assert (Path(dd.__file__).parent / "py.typed").exists()
