"""The house rules: which room may import which, and what no file of the package may do. Measured on the source.

Data flows one way: `FLOORS` lists the floors from the ground up, and a room imports from lower floors alone, never from
another room of its floor or from a higher one, not even inside a function or for a type checker; only the files of the
ground may import each other. Rooms that need no model import none that does. No modules import each other in a circle.
Nothing but `hf/` reads what a configuration of transformers holds. Every rule is also shown to catch a file that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import depthdial

SOURCE = Path(depthdial.__file__).parent
MOST_LINES = 400


@dataclass(frozen=True)
class Room:
    """A folder (or a file at the top), by its dotted name within the package.

    Attributes:
        others: packages of others that it may import besides the standard library; None for any.
        has_model: whether it may import what needs a model; otherwise only rooms that need none either.
    """

    name: str
    others: frozenset[str] | None = frozenset()
    has_model: bool = False


def _plain(name: str, *others: str) -> Room:
    return Room(name, frozenset(others))


def _model(name: str) -> Room:
    return Room(name, None, has_model=True)


FLOORS: tuple[tuple[Room, ...], ...] = (
    (
        _plain("moved"),
        _plain("errors"),
        _plain("checks"),
        _plain("files"),
        _plain("progress", "rich"),
        _plain("metrics"),
        _plain("provenance", "torch"),  # torch inside one function alone
    ),
    (
        _plain("routes"),
        _plain("stats", "numpy", "scipy"),
        _plain("latency", "numpy", "scipy"),
        _plain("rows", "pyarrow", "filelock"),
        _plain("control.predictors", "numpy", "lightgbm", "torch"),  # torch and lightgbm inside functions alone
    ),
    (_model("hf"), _plain("oracles", "numpy", "pandas")),  # pandas inside one function alone
    (_model("views"), _model("data"), _plain("guarantee", "numpy", "scipy"), _plain("control.judge", "numpy")),
    (_model("engine"),),
    (_model("measure"),),
    (
        _model("search"),
        _model("control"),
        _model("train"),
        _plain("report", "numpy", "matplotlib", "jinja2", "pyarrow"),
    ),
    (
        Room("studies", frozenset({"numpy", "pyarrow", "filelock"}), has_model=True),
        Room("serve", frozenset({"fastapi", "starlette", "pydantic", "prometheus_client", "uvicorn"}), has_model=True),
        _model("exports"),
        _model("evals"),
        _model("vllm"),
        _plain("scale", "ray"),  # ray inside functions alone
    ),
    (Room("cli", frozenset({"typer", "rich"}), has_model=True),),
)
MOST_FLOORS = 9
ROOMS = {room.name: room for floor in FLOORS for room in floor}
# The package's own face, whose names are imported when they are used, and `python -m depthdial`.
FACES = ("", "__main__")
PLACES = {room.name: place for place, floor in enumerate(FLOORS) for room in floor}


def room_of(module: str) -> Room | None:
    """The room of a module (a dotted name within the package): the innermost folder that is listed."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((ROOMS[name] for name in names if name in ROOMS), None)


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
            for alias in node.names:  # `from depthdial import search` imports a room, and not a name of the package
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner.removeprefix(f"{package}.") in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(package: Path) -> list[str]:
    """One line for each import that the rules forbid, and for each module that stands in no room."""
    modules, found = modules_of(package), []
    for module, path in modules.items():
        if module in FACES:
            continue
        room = room_of(module)
        where = path.relative_to(package).as_posix()
        if room is None:
            found.append(f"{where}: no rule for this room; give it a place in FLOORS")
            continue
        for line, name in imports_of(module, path, package.name, set(modules)):
            top, _, inner = name.partition(".")
            if top == package.name:
                if not may_import(room, inner):
                    found.append(f"{where}:{line}: {room.name} may not import {name}")
            elif top not in sys.stdlib_module_names and room.others is not None and top not in room.others:
                found.append(f"{where}:{line}: {room.name} may not import {top}")
    return found


def may_import(room: Room, module: str) -> bool:
    other = room_of(module)
    if other is None:  # the package itself would import anything
        return False
    below = PLACES[other.name] < PLACES[room.name] or PLACES[room.name] == 0 == PLACES[other.name]
    return (below or other == room) and (room.has_model or not other.has_model)


def circles(package: Path) -> list[tuple[str, ...]]:
    """Modules that import each other, directly or through others, at whatever place in the file."""
    modules = modules_of(package)
    known = set(modules)
    arrows = {
        module: {
            inner
            for _, name in imports_of(module, path, package.name, known)
            if (inner := name.removeprefix(f"{package.name}.")) in known and inner not in (module, *FACES)
        }
        for module, path in modules.items()
        if module not in FACES
    }
    # What nothing imports, or what imports nothing more, is in no circle: peel it off until nothing changes.
    left = set(arrows)
    while True:
        kept = {m for m in left if arrows[m] & left and any(m in arrows[other] for other in left)}
        if kept == left:
            return [tuple(sorted(left))] if left else []
        left = kept


def test_no_room_imports_what_it_may_not() -> None:
    assert violations(SOURCE) == []


def test_there_are_few_floors() -> None:
    assert len(FLOORS) <= MOST_FLOORS
    assert sum(len(floor) for floor in FLOORS) == len(ROOMS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(SOURCE) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    line = {
        "__init__.py": "",
        "hf/__init__.py": "",
        "hf/a.py": "def f():\n    from depthdial.hf.b import x",
        "hf/b.py": "from depthdial.hf.c import x",
    }
    assert circles(write_tree(tmp_path / "line", {**line, "hf/c.py": "x = 1"})) == []
    found = circles(write_tree(tmp_path / "circle", {**line, "hf/c.py": "def f():\n    from . import a"}))
    assert found == [("hf.a", "hf.b", "hf.c")]


def test_the_checker_sees_the_package() -> None:
    modules = modules_of(SOURCE)
    assert {"", "routes", "views.view", "measure.sweep", "oracles.oracle", "search", "cli.app", "__main__"} <= modules.keys()
    assert ROOMS.keys() <= modules.keys()
    known = set(modules)
    seen = {name for module, path in modules.items() for _, name in imports_of(module, path, "depthdial", known)}
    # from a top level, from inside a function, and from under TYPE_CHECKING
    assert {"depthdial.errors", "depthdial.hf.load", "depthdial.data.tasks", "torch", "typer"} <= seen


CLEAN = {
    "__init__.py": "from depthdial.cli.app import main",
    "errors.py": "",
    "files.py": "from depthdial.errors import InputError",
    "data/__init__.py": "",
    "data/tasks.py": "from depthdial.hf.load import x",
    "routes/__init__.py": "import re\nfrom depthdial.errors import InputError",
    "routes/families.py": "from depthdial.routes import x",
    "rows/__init__.py": "",
    "rows/store.py": "import pyarrow",
    "hf/__init__.py": "",
    "hf/load.py": "import transformers\nfrom ..routes import Route",
    "views/__init__.py": "",
    "views/view.py": "import torch\nfrom ..hf import load",
    "views/prompted.py": "from . import view",
    "measure/__init__.py": "",
    "measure/sweep.py": "from depthdial.views import view",
    "oracles/__init__.py": "",
    "oracles/oracle.py": "import numpy as np\nfrom depthdial.oracles.exact.hull import merge",
    "oracles/exact/__init__.py": "",
    "oracles/exact/hull.py": "import numpy.typing",
    "search/__init__.py": "",
    "search/run.py": "import torch\nfrom depthdial.measure.sweep import sweep",
    "control/__init__.py": "",
    "control/fit.py": "from depthdial.control.judge.gains import x",
    "control/judge/__init__.py": "",
    "control/judge/gains.py": "from depthdial.oracles.oracle import oracle",
    "report/__init__.py": "",
    "report/page.py": "import jinja2\nfrom depthdial.rows.store import load_rows\nfrom depthdial.report import page",
    "studies/__init__.py": "",
    "studies/study.py": "from depthdial.report.page import write_report",
    "cli/__init__.py": "",
    "cli/app.py": "import typer\ndef f():\n    from depthdial.studies.study import study",
}
BROKEN = [  # file, its text, what the checker says
    ("routes/__init__.py", "import numpy", "routes/__init__.py:1: routes may not import numpy"),
    ("routes/__init__.py", "import numpy.typing as t", "may not import numpy"),
    (
        "routes/families.py",
        "def f():\n    if True:\n        from depthdial.views.view import view",
        "routes/families.py:3: routes may not import",
    ),
    ("routes/families.py", "from ..views import view", "may not import depthdial.views.view"),
    ("routes/families.py", "from ..views.view import view", "may not import depthdial.views.view"),
    ("routes/families.py", "from .. import cli", "may not import depthdial.cli"),
    ("routes/families.py", "from depthdial import cli", "may not import depthdial.cli"),
    ("routes/families.py", "import depthdial.cli as c", "may not import depthdial.cli"),
    ("routes/families.py", "import depthdial as dd", "may not import depthdial"),
    ("routes/families.py", "from depthdial import sweep", "may not import depthdial"),
    (
        "routes/families.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from depthdial.cli.app import app",
        "routes/families.py:3:",
    ),
    (
        "routes/families.py",
        "import importlib\nimportlib.import_module('depthdial.cli')",
        "may not import depthdial.cli",
    ),
    (
        "routes/families.py",
        "class A:\n    def f(self):\n        try:\n            import torch\n        except E: ...",
        "routes/families.py:4:",
    ),
    # rooms of one floor
    ("routes/families.py", "from depthdial.rows.store import x", "routes may not import depthdial.rows.store"),
    ("data/tasks.py", "def f():\n    from ..views import view", "data may not import depthdial.views.view"),
    ("views/view.py", "from depthdial.data.tasks import x", "views may not import depthdial.data.tasks"),
    ("search/run.py", "from depthdial.control.fit import x", "search may not import depthdial.control.fit"),
    ("errors.py", "from depthdial.routes import x", "errors may not import depthdial.routes"),
    ("hf/load.py", "from depthdial.views.view import view", "hf may not import depthdial.views.view"),
    ("views/view.py", "from ..measure.sweep import sweep", "may not import depthdial.measure.sweep"),
    ("views/view.py", "from .. import measure", "may not import depthdial.measure"),
    ("views/__init__.py", "from ..search import run", "may not import depthdial.search.run"),
    ("measure/sweep.py", "from depthdial.search.run import x", "may not import depthdial.search.run"),
    ("measure/sweep.py", "def f():\n    from depthdial.report.page import w", "may not import depthdial.report.page"),
    ("oracles/oracle.py", "import torch", "oracles may not import torch"),
    ("oracles/oracle.py", "def f():\n    from pyarrow import compute", "may not import pyarrow"),
    ("oracles/oracle.py", "from depthdial.search.run import x", "may not import depthdial.search.run"),
    ("oracles/oracle.py", "from depthdial.measure.sweep import x", "may not import depthdial.measure.sweep"),
    ("oracles/exact/hull.py", "from depthdial.hf.load import x", "oracles may not import depthdial.hf.load"),
    ("search/run.py", "from depthdial.report.page import x", "search may not import depthdial.report.page"),
    ("control/judge/gains.py", "import torch", "control.judge may not import torch"),
    ("control/judge/gains.py", "from depthdial.control.fit import x", "control.judge may not import depthdial.control.fit"),
    ("report/page.py", "import torch", "report may not import torch"),
    ("report/page.py", "from depthdial.views.view import view", "may not import depthdial.views.view"),
    ("report/page.py", "from depthdial.measure.sweep import sweep", "may not import depthdial.measure.sweep"),
    ("report/page.py", "from depthdial import measure", "may not import depthdial.measure"),
    ("report/page.py", "from depthdial.control.fit import x", "may not import depthdial.control.fit"),
    ("studies/study.py", "from depthdial.cli.app import app", "studies may not import depthdial.cli.app"),
    ("studies/study.py", "import torch", "studies may not import torch"),
    ("cli/app.py", "import torch", "cli may not import torch"),
    ("elsewhere/app.py", "", "elsewhere/app.py: no rule for this room"),
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
    [
        "oracles.oracle",
        "oracles.predictable",
        "report.pages",
        "report.kit.tables",
        "report.study.routes_plot",
        "report.gates.page",
    ],
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
ARCHITECTURES = "hf/architectures.py"
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
    assert len(knows_module_names({"views/view.py": f"x = 1\n{line}\n"})) == 1
    assert knows_module_names({"views/view.py": "stack.layers[0]\nself.model.config\n"}) == []


# The fields that a configuration of transformers keeps under names of its own; to be asked of `hf/`.
CONFIG_FIELDS = re.compile(
    r"get_text_config|[.\"'](num_hidden_layers|hidden_size|intermediate_size|vocab_size|num_attention_heads|num_key_value_heads"
    r"|head_dim|max_position_embeddings|rope_(?:parameters|scaling|theta)|layer_types|sliding_window|num_experts_per_\w+"
    r"|num_local_experts|moe_(?:k|topk)|multi_query|new_decoder_architecture|tie_word_embeddings|_attn_implementation)\b"
)


def reads_config_fields(files: dict[str, str]) -> set[str]:
    return {name for name, text in files.items() if not name.startswith("hf/") and CONFIG_FIELDS.search(text)}


def test_one_room_reads_configurations() -> None:
    assert reads_config_fields(sources(SOURCE)) == set()


@pytest.mark.parametrize(
    "line", ["x = base.config.get_text_config(decoder=True)", "config.hidden_size", "getattr(config, 'rope_theta', None)"]
)
def test_a_file_that_reads_a_configuration_is_caught(line: str) -> None:
    files = {"measure/cost.py": line, "hf/facts.py": line, "data/tasks.py": "gates.config.width, hidden_size = 1, 2"}
    assert reads_config_fields(files) == {"measure/cost.py"}


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
