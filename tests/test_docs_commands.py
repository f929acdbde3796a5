"""The commands and snippets of README and docs/ run, page by page, on a tiny model of as many layers as the real one.

Files have the names that the pages use. Commands get options that make them smaller, and nothing else about them changes.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depthdial as dd
from depthdial.hf.builtin import ALIASES
from tests.conftest import WORDS, make_llama, make_tokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")]
# Names on the pages, and what stands there in their place.
NAMES = {**dict.fromkeys((*ALIASES, "MODEL"), "tiny"), "FOLDER": "my/", "elastic": "runs/elastic"}
SMALLER = {
    "generate": "--max-new-tokens 3",
    "search": "--limit 2 --answer-tokens 3 --screen 1",
    "search-study": "--limit 6 --calibration-limit 2 --answer-tokens 3 --fidelity-tokens 3 --max-new-tokens 3 --screen 1",
    "sweep": "--limit 4 --max-new-tokens 4",
    "similarity": "--limit 4",
    "study": "--limit 4 --calibration-limit 2 --max-new-tokens 4",
    "finetune": "--max-tokens 60 --r 2",
    "train-gates": "--max-tokens 60",
    "gates-study": "--tokens 60 --base-tokens 60 --seeds 2 --budgets 0.75 --map-sequences 2 --max-new-tokens 4 --limit 4",
    "compare": "--max-new-tokens 3",
    "certify": "--max-new-tokens 3",
    "export": "--limit 4 --max-new-tokens 3",
    "bench": "--rows 1,2 --context 8,16 --prompts 8 --drafts 1 --rounds 2 --steps 4",
    "controller fit": "--response-tokens 4",
    "controller evaluate": "--seeds 1 --limit 24 --calibration-limit 24",
}


def commands_of(page: Path) -> list[str]:
    """Indented lines that call `depthdial`, without what is said beside them."""
    lines = re.findall(r"^    (depthdial [^|\n]*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.split(r"\s{2,}#", line)[0].rstrip() for line in lines]


def snippets_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^    import depthdial as dd\n(?:(?:    (?!depthdial ).*)?\n)+", text, re.MULTILINE)
    return [*re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL), *map(textwrap.dedent, indented)]


def smaller(command: str) -> list[str]:
    local = re.sub(r" --(ray-\w+ \S+|replicas \S+|ray)(?= |$)", "", command)  # Ray's own tests are in tests/scale
    words = [NAMES.get(word, word) for word in shlex.split(local)[1:]]
    for verb, options in SMALLER.items():
        if words[: len(verb.split())] == verb.split():
            given = {word for word in words if word.startswith("--")}
            pairs = re.findall(r"(--\S+) (\S+)", options)
            return [*words, *(word for name, value in pairs if name not in given for word in (name, value))]
    return words


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model, data and results that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    model, tokenizer = make_llama(30), make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    model.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    names = ("my/train", "my/validation", "my/test", "alpaca/train", "alpaca/validation", "my", "fresh", "calibration")
    for n, name in enumerate(names):
        path = Path(f"{name}.jsonl")
        path.parent.mkdir(exist_ok=True)
        # Prompts of one file are in none of the others.
        certified = name in ("fresh", "alpaca/validation", "calibration")  # which takes more rows
        verbs = WORDS[8:26] if certified else WORDS[16:22]
        starts = WORDS[:16] if name == "calibration" else WORDS[10:16]
        rows = [{"prompt": f"{a} {b} {WORDS[n]}", "reference": f"{b} the {a}"} for a in starts for b in verbs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def elastic(world: Path, command_line: Any) -> None:
    """What the pages call the adapter that ships, trained here; and the routes that it was trained for."""
    for command in (
        "depthdial search MODEL --task builtin --out routes.json",
        "depthdial finetune MODEL --elastic routes.json --layers 30,24,15 --data my/ --out runs/elastic",
    ):
        status, _, said = command_line(*smaller(command))
        assert status == 0, said


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::depthdial.RouteWarning")
def test_the_commands_of_a_page_run(page: Path, world: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands_of(page):
        if command.startswith("depthdial warmup") and not (shutil.which("g++") or shutil.which("clang++")):
            continue  # needs a compiler, which nothing else does
        if command.startswith("depthdial serve"):  # which goes on until it is stopped: what it loads, and not the server
            monkeypatch.setattr("depthdial.serve.run.run_server", lambda load, *_: load().engine.close())
        status, _, said = command_line(*smaller(command))
        assert status == 0, f"{command}: {said[-500:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if snippets_of(page)], ids=lambda page: page.stem)
@pytest.mark.usefixtures("elastic")
@pytest.mark.filterwarnings("ignore::depthdial.RouteWarning")
def test_the_snippets_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = dd.load
    monkeypatch.setattr(dd, "load", lambda name, adapter=None: load("tiny", adapter=adapter and "runs/elastic"))
    prompts = ["the cat", "a dog sat"]
    losses = np.linspace(0, 0.01, 4) * np.ones((64, 4))
    for snippet in snippets_of(page):
        exec(snippet, {"prompts": prompts, "stream": prompts, "losses": losses, "costs": np.full((64, 4), 30.0)})


def test_every_page_with_code_is_read() -> None:
    assert len(commands_of(ROOT / "README.md")) == 5 and len(snippets_of(ROOT / "README.md")) == 1
    assert len(commands_of(ROOT / "docs/commands.md")) > 15
    assert sum(bool(snippets_of(page)) for page in PAGES) == 13
