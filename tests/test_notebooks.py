"""Notebooks run from the first cell to the last, on a tiny model of 30 layers, and are committed without outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import make_llama, make_tokenizer

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAME = '"smollm2-135m"'


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    assert sum(NAME in code for code in code_of(notebook)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("way", ["python", "jupyter"])
def test_a_notebook_runs(notebook: Path, way: str, tmp_path: Path) -> None:
    if way == "jupyter" and not all(find_spec(name) for name in ("nbclient", "nbformat", "ipykernel")):
        pytest.skip("nbclient, nbformat or ipykernel is not installed: pip install '.[notebooks]'")
    make_llama(30).save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    if way == "jupyter":
        text = notebook.read_text(encoding="utf-8").replace(json.dumps(NAME)[1:-1], r"\"tiny\"")
        (tmp_path / "run.ipynb").write_text(text, encoding="utf-8")
        script = (
            "import nbclient, nbformat\n"
            "book = nbformat.read('run.ipynb', as_version=4)\n"
            "nbclient.NotebookClient(book, timeout=600, kernel_name='python3').execute()\n"
        )
    else:
        script = "\n".join(code_of(notebook)).replace(NAME, '"tiny"')
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
