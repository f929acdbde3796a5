"""The house rules: which room may import which, and what no file of the package may do. Measured on the source.

Data flows downwards (rooms below are listed first) and nothing imports upwards, not even inside a function or for a type
checker. Every rule is also shown to catch a file that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import depthdial

SOURCE = Path(depthdial.__file__).parent
MOST_LINES = 400


@dataclass(frozen=True)
class Rule:
    """What the modules of a room may import: modules of the package, and packages of others (None: any)."""

    rooms: tuple[str, ...]
    others: frozenset[str] | None = frozenset()


GROUND = ("errors", "metrics", "routes", "files", "families", "progress")
RESULTS = ("measure.results", "measure.stats", "measure.equivalence", "measure.gate_rows")  # rows and numbers, no model
MEASURING = ("models.*", "measure.*", "choose.*", "choose.search*", "choose.predictors*", "choose.controller*")
PARTS = {"choose.search*", "choose.predictors*", "choose.controller*"}
RULES = {  # from the lowest room to the highest; of several patterns that fit a module, the first counts
    "errors": Rule(()),
    "metrics": Rule(("errors",)),
    "routes": Rule(("errors",)),
    "files": Rule(("errors",)),
    "families": Rule(("errors", "files", "routes")),
    "progress": Rule((), frozenset({"rich"})),
    "models.*": Rule((*GROUND, "models.*"), None),
    "measure.*": Rule((*GROUND, "models.*", "measure.*"), None),
    "choose.search*": Rule((*GROUND, "models.*", "measure.*", "choose.*", "choose.search*"), None),
    "choose.predictors*": Rule(("errors", "choose.predictors*"), frozenset({"numpy", "torch", "lightgbm"})),
    "choose.controller*": Rule((*GROUND, *MEASURING), None),
    "choose.frames": Rule(("errors",), frozenset({"numpy", "pandas"})),  # pandas inside the function alone
    "choose.*": Rule(("errors", "metrics", "choose.frames", "choose.*"), frozenset({"numpy"})),
    "train.*": Rule((*GROUND, *MEASURING, "train.*"), None),
    "generation.*": Rule((*GROUND, *MEASURING, "generation.*"), None),
    "report.*": Rule(
        (
            *GROUND,
            *RESULTS,
            "choose.costs",
            "choose.oracle",
            "choose.predictable",
            "choose.gap",
            "choose.guarantee",
            "report.*",
        ),
        frozenset({"numpy", "matplotlib", "jinja2", "pyarrow"}),
    ),
    "controller_studies": Rule((*GROUND, *MEASURING, "generation.*", "report.*"), frozenset({"pyarrow", "numpy"})),
    "study_controller": Rule((*GROUND, *MEASURING, "report.*", "controller_studies")),
    "studies": Rule((*GROUND, *MEASURING, "generation.*", "report.*", "controller_studies", "study_controller")),
    "gate_studies": Rule((*GROUND, *MEASURING, "train.*", "report.*"), frozenset({"pyarrow", "filelock"})),
    "search_studies": Rule((*GROUND, *MEASURING, "report.*"), frozenset({"pyarrow"})),
    "cli*": Rule(
        (
            *GROUND,
            *MEASURING,
            "train.*",
            "generation.*",
            "report.*",
            "studies",
            "gate_studies",
            "search_studies",
            "controller_studies",
            "cli*",
        ),
        frozenset({"typer", "rich"}),
    ),
    # The package's own face: its names are imported when they are used.
    "": Rule(("*",)),
    "__main__": Rule(("cli*",)),
}


def room_of(module: str) -> str | None:
    """The pattern of `RULES` that a module (a dotted name within the package) falls under."""
    return next((pattern for pattern in RULES if fits(module, pattern)), None)


def fits(module: str, pattern: str) -> bool:
    return fnmatchcase(module, pattern) or (pattern.endswith(".*") and module == pattern[:-2])


def modules_of(package: Path) -> dict[str, Path]:
    """Every module under a folder by its dotted name within it; packages by the name of their folder, the top is ""."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, package: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything that a file imports, wherever in the file it stands."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package, *module.split(".")] if module else [package]
                parents = here[: len(here) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:  # `from depthdial import choose` imports a room, and not a name of the package
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner.removeprefix(f"{package}.") in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(package: Path) -> list[str]:
    """One line for each import that the rules forbid, and for each module that no rule speaks of."""
    modules, found = modules_of(package), []
    for module, path in modules.items():
        room = room_of(module)
        where = path.relative_to(package).as_posix()
        if room is None:
            found.append(f"{where}: no rule for this room; add one that says what it may import")
            continue
        rule = RULES[room]
        for line, name in imports_of(module, path, package.name, set(modules)):
            top, _, inner = name.partition(".")
            if top == package.name:
                if not may_import(rule, inner):
                    found.append(f"{where}:{line}: {room or 'the package'} may not import {name}")
            elif top not in sys.stdlib_module_names and rule.others is not None and top not in rule.others:
                found.append(f"{where}:{line}: {room or 'the package'} may not import {top}")
    return found


def may_import(rule: Rule, module: str) -> bool:
    # By the room that a module belongs to: "choose.*" does not open choose.search, which is a room of its own.
    return any(pattern in ("*", module) or pattern == room_of(module) for pattern in rule.rooms)


def test_no_room_imports_what_it_may_not() -> None:
    assert violations(SOURCE) == []


def test_the_checker_sees_the_package() -> None:
    modules = modules_of(SOURCE)
    assert {
        "",
        "routes",
        "models.view",
        "measure.sweep",
        "choose.oracle",
        "choose.search",
        "cli",
        "__main__",
    } <= modules.keys()
    assert {"choose", "models", "measure", "report", "generation"} <= modules.keys()
    known = set(modules)
    seen = {name for module, path in modules.items() for _, name in imports_of(module, path, "depthdial", known)}
    # from a top level, from inside a function, and from under TYPE_CHECKING
    assert {"depthdial.errors", "depthdial.models.load", "depthdial.measure.tasks", "torch", "typer"} <= seen


def test_the_rules_themselves_only_point_downwards() -> None:
    order = list(RULES)
    for place, (room, rule) in enumerate(RULES.items()):
        if room in ("", "__main__"):
            continue
        for pattern in rule.rooms:
            target = pattern if pattern in RULES else room_of(pattern)
            assert target is not None, f"{room}: {pattern} is no room"
            # Rooms within `choose` are listed before the rest of it only so that their patterns count first.
            assert order.index(target) <= place or (room in PARTS and target == "choose.*"), f"{room} -> {pattern}"
    assert not PARTS & set(RULES["choose.*"].rooms)


CLEAN = {
    "__init__.py": "",
    "errors.py": "",
    "routes.py": "import re\nfrom depthdial.errors import InputError",
    "models/__init__.py": "",
    "models/view.py": "import torch\nfrom . import load\nfrom ..routes import Route",
    "models/load.py": "import transformers",
    "measure/__init__.py": "",
    "measure/results.py": "import pyarrow\nfrom depthdial.models import view",
    "measure/sweep.py": "from .results import rows",
    "choose/__init__.py": "",
    "choose/oracle.py": "import numpy as np\nfrom depthdial.choose.hull import merge",
    "choose/hull.py": "import numpy.typing",
    "choose/search.py": "import torch\nfrom depthdial.measure.sweep import sweep",
    "report/__init__.py": "",
    "report/page.py": "import jinja2\nfrom depthdial.measure.results import load_rows\nfrom depthdial.report import page",
    "studies.py": "from depthdial.report.page import write_report",
    "cli.py": "import typer\ndef f():\n    from depthdial.studies import study",
}
BROKEN = [  # file, its text, what the checker says
    ("routes.py", "import numpy", "routes.py:1: routes may not import numpy"),
    ("routes.py", "import numpy.typing as t", "may not import numpy"),
    ("routes.py", "from depthdial.families import x", "may not import depthdial.families"),
    (
        "routes.py",
        "def f():\n    if True:\n        from depthdial.models.view import view",
        "routes.py:3: routes may not import",
    ),
    ("routes.py", "from .models import view", "may not import depthdial.models.view"),
    ("routes.py", "from .models.view import view", "may not import depthdial.models.view"),
    ("routes.py", "from . import cli", "may not import depthdial.cli"),
    ("routes.py", "from depthdial import cli", "may not import depthdial.cli"),
    ("routes.py", "import depthdial.cli as c", "may not import depthdial.cli"),
    ("routes.py", "import depthdial as dd", "may not import depthdial"),
    ("routes.py", "from depthdial import sweep", "may not import depthdial"),
    ("routes.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from depthdial.cli import app", "routes.py:3:"),
    ("routes.py", "import importlib\nimportlib.import_module('depthdial.cli')", "may not import depthdial.cli"),
    (
        "routes.py",
        "class A:\n    def f(self):\n        try:\n            import torch\n        except E: ...",
        "routes.py:4:",
    ),
    ("models/view.py", "from ..measure.sweep import sweep", "may not import depthdial.measure.sweep"),
    ("models/view.py", "from .. import measure", "may not import depthdial.measure"),
    ("models/__init__.py", "from ..choose import oracle", "may not import depthdial.choose.oracle"),
    ("measure/sweep.py", "from depthdial.choose.oracle import oracle", "may not import depthdial.choose.oracle"),
    ("measure/sweep.py", "def f():\n    from depthdial.report.page import w", "may not import depthdial.report.page"),
    ("choose/oracle.py", "import torch", "choose.* may not import torch"),
    ("choose/oracle.py", "def f():\n    import pandas as pd", "may not import pandas"),
    ("choose/oracle.py", "def f():\n    from pyarrow import compute", "may not import pyarrow"),
    ("choose/oracle.py", "from depthdial.choose.search import x", "may not import depthdial.choose.search"),
    ("choose/oracle.py", "from . import search", "may not import depthdial.choose.search"),
    ("choose/oracle.py", "from depthdial.routes import Route", "may not import depthdial.routes"),
    ("choose/hull.py", "from depthdial.measure.stats import x", "may not import depthdial.measure.stats"),
    ("choose/search.py", "from depthdial.report.page import x", "choose.search* may not import depthdial.report.page"),
    ("report/page.py", "import torch", "report.* may not import torch"),
    ("report/page.py", "from depthdial.models.view import view", "may not import depthdial.models.view"),
    ("report/page.py", "from depthdial.measure.sweep import sweep", "may not import depthdial.measure.sweep"),
    ("report/page.py", "from depthdial import measure", "may not import depthdial.measure"),
    ("report/page.py", "from depthdial.choose.hull import x", "may not import depthdial.choose.hull"),
    ("report/page.py", "from depthdial.choose.search import x", "may not import depthdial.choose.search"),
    ("studies.py", "from depthdial.cli import app", "studies may not import depthdial.cli"),
    ("studies.py", "import torch", "studies may not import torch"),
    ("cli.py", "import torch", "cli* may not import torch"),
    ("serve/app.py", "", "serve/app.py: no rule for this room"),
    ("helpers.py", "", "helpers.py: no rule for this room"),
]


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "depthdial"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_the_checker_lets_a_clean_tree_pass(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(("name", "text", "told"), BROKEN, ids=[f"{name}: {text!r}"[:60] for name, text, _ in BROKEN])
def test_the_checker_catches(tmp_path: Path, name: str, text: str, told: str) -> None:
    found = violations(write_tree(tmp_path, {**CLEAN, name: text}))
    assert len(found) == 1
    assert told in found[0]


# What importing a room loads


@pytest.mark.parametrize(
    "room",
    ["choose.oracle", "choose.predictable", "report.page", "report.tables", "report.routes_plot", "report.gates_page"],
)
def test_the_upper_rooms_that_read_results_load_no_model_library(room: str) -> None:
    code = f"import sys, depthdial.{room}; print(sorted({{'torch', 'transformers', 'pandas'}} & sys.modules.keys()))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


# What no file may hold

# Where transformers keeps things inside its models; to be asked of models/architectures.py.
MODULE_NAMES = re.compile(
    r"\bmodel\.layers\b|\btransformer\.h\b|\bdecoder\.layers\b|\bgpt_neox\b|\bembed_tokens\b|\bembed_in\b|\blm_head\b"
    r"|\bself_attn\b|\binput_layernorm\b|\bfinal_layer_?norm\b|\bln_f\b|\bword_embeddings\b|\bwte\b|\blayer_idx\b"
)
ARCHITECTURES = "models/architectures.py"
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}


def sources(package: Path) -> dict[str, str]:
    return {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}


def knows_module_names(files: dict[str, str]) -> list[str]:
    return [
        f"{name}:{number}: {match[0]}"
        for name, text in files.items()
        if name != ARCHITECTURES
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := MODULE_NAMES.search(line))
    ]


def test_one_file_knows_the_names_inside_models() -> None:
    files = sources(SOURCE)
    assert knows_module_names(files) == []
    assert MODULE_NAMES.search(files[ARCHITECTURES])


@pytest.mark.parametrize(
    "line", ["base.model.layers[0]", "getattr(model, 'gpt_neox')", "model.transformer.h", "layer.self_attn"]
)
def test_a_file_that_knows_them_is_caught(line: str) -> None:
    assert len(knows_module_names({"models/view.py": f"x = 1\n{line}\n"})) == 1
    assert knows_module_names({"models/view.py": "stack.layers[0]\nself.model.config\n"}) == []


def unsafe_reading(text: str) -> list[str]:
    """Whatever in a file may run code out of data: pickle and its kin, torch.load, numpy's pickles, eval."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").partition(".")[0]
            found += [top] if top in UNSAFE_MODULES else []
            found += ["torch.load"] if node.module == "torch" and any(alias.name == "load" for alias in node.names) else []
        elif isinstance(node, ast.Call):
            options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            called = ast.unparse(node.func)
            if called in ("torch.load", "torch.serialization.load") and options.get("weights_only") is not True:
                found.append(called)
            # transformers' reader of .bin files takes the same switch
            if options.get("weights_only", True) is not True or options.get("allow_pickle", False) is not False:
                found.append(called)
            if called in ("eval", "exec") or called.endswith("read_pickle"):
                found.append(called)
    return found


def test_nothing_unpickles() -> None:
    found = {name: unsafe for name, text in sources(SOURCE).items() if (unsafe := unsafe_reading(text))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import joblib.parallel",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "Auto.from_pretrained(path, weights_only=False)",
        "pd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_unpickling_is_caught(text: str) -> None:
    assert len(unsafe_reading(text)) >= 1


@pytest.mark.parametrize("text", ["torch.load(path, weights_only=True)", "model.eval()", "np.load(p, allow_pickle=False)"])
def test_what_is_safe_is_not_caught(text: str) -> None:
    assert unsafe_reading(text) == []


def test_no_file_is_long() -> None:
    long = {name: n for name, text in sources(SOURCE).items() if (n := len(text.splitlines())) > MOST_LINES}
    assert long == {}


def test_no_file_is_called_after_nothing() -> None:
    names = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [path for path in sources(SOURCE) if path.rpartition("/")[2] in names] == []


def test_every_file_says_what_it_is_for() -> None:
    silent = [name for name, text in sources(SOURCE).items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert [name for name in silent if name != "__main__.py"] == []


# A path of somebody's machine, a note to oneself, a switched-off check.
LEFTOVERS = re.compile(r"/work/|/tmp/|/home/\w|/Users/\w|C:\\\\|\bTODO\b|\bFIXME\b|\bXXX\b|\bHACK\b|\bbreakpoint\(|\bpdb\b")


def test_no_leftovers() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in sources(SOURCE).items()
        for number, line in enumerate(text.splitlines(), start=1)
        if LEFTOVERS.search(line)
    ]
    assert found == []
    assert LEFTOVERS.search("x = 1  # " + "TO" + "DO: later")
