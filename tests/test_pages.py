"""Pages that are made from rows are what their templates and the rows say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import loaded

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    with loaded(ROOT / "docs" / "pages.py") as module:
        yield module


def test_every_page_is_what_its_template_and_the_rows_say(pages: ModuleType) -> None:
    for path, text in pages.rendered().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} was changed by hand, or its rows were: make pages"


def test_templates_hold_no_measured_number_of_their_own() -> None:
    """A number with three decimals, a percentage with an interval, a speed-up: they come from rows."""
    for template in (ROOT / "docs" / "templates").glob("*.jinja"):
        assert not re.findall(r"\b0\.\d{3}\b|\d+% \[|\b\d+\.\d+x\b", template.read_text(encoding="utf-8")), template.name


@pytest.mark.slow
def test_one_command_makes_every_figure_and_page_again(tmp_path: Path) -> None:
    for name in ("benchmarks", "docs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    kept = ("playground.png", "map-hidden-sampled.png")  # a screenshot, and what shows weights that are not committed
    pictures = [path for path in tmp_path.rglob("*.png") if path.name not in kept]
    for path in (*pictures, tmp_path / "README.md", tmp_path / "docs" / "demo.md"):
        path.unlink()
    done = subprocess.run([sys.executable, "docs/pages.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in pictures if not path.exists()] == []
    for page in ("README.md", "docs/demo.md"):
        assert (tmp_path / page).read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8")
