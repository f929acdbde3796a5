"""Verbs on the saved tiny model and its lessons, each into a folder of its own."""

from __future__ import annotations

import pytest


@pytest.fixture
def paths(save_lessons):
    return save_lessons(("one", "two", "three"))


@pytest.fixture
def run(paths, command_line):
    def go(verb, *arguments, out="out"):
        fixed = (paths / "base", "--data", paths / "lessons.jsonl", "--out", paths / out)
        return command_line(verb, *(() if verb == "report" else fixed), *arguments)

    return go
