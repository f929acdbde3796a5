"""The site: every page of docs/ stands in its navigation, and what pages show and link to is laid out with them."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.scripts import loaded

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


@pytest.fixture(scope="module")
def stage() -> Iterator[ModuleType]:
    with loaded(ROOT / "docs" / "stage.py") as module:
        yield module


def pages_of(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inside = entry.values() if isinstance(entry, dict) else entry
    assert not isinstance(inside, str)
    return [page for one in inside for page in pages_of(one)]


def test_every_page_stands_in_the_navigation_once() -> None:
    pages = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(pages) == len(set(pages))
    assert {*pages} == {path.name for path in (ROOT / "docs").glob("*.md")} | {"CONTRIBUTING.md"}


def test_links_lead_to_the_same_files_as_in_the_repository(stage: ModuleType, tmp_path: Path) -> None:
    copied = stage.stage(ROOT, tmp_path / "docs")
    assert Path("index.md") in copied and Path("experiments/guarantee/simulation.png") in copied
    for page in (ROOT / "docs").glob("*.md"):
        there = LINK.findall((tmp_path / "docs" / page.name).read_text(encoding="utf-8"))
        here = LINK.findall(page.read_text(encoding="utf-8"))
        assert len(there) == len(here)
        for link, original in zip(there, here, strict=True):
            target = tmp_path / "docs" / link
            assert target.is_file() and target.name == Path(original).name
            if target.suffix != ".md":
                assert target.read_bytes() == (page.parent / original).read_bytes()


def test_a_link_that_leads_nowhere_is_named(stage: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](../gone.png)")
    with pytest.raises(FileNotFoundError, match=r"docs/index.md links to ../gone.png"):
        stage.stage(tmp_path, tmp_path / "out")


def test_the_examples_of_the_layout_run(stage: ModuleType) -> None:
    assert doctest.testmod(stage) == (0, 1)


@pytest.mark.slow
def test_the_site_builds_strictly(stage: ModuleType, tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed: pip install '.[docs]'")
    stage.stage(ROOT, tmp_path / "build" / "docs")
    shutil.copyfile(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "figure2.html").is_file()
    shown = (tmp_path / "site" / "figure2.html").read_text(encoding="utf-8")
    for picture in re.findall(r'<img [^>]*src="([^"]+)"', shown):
        assert (tmp_path / "site" / picture).is_file()
