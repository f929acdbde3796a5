"""`eval` from the command line, on a tiny random model."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("lm_eval")


def test_tasks_at_two_depths(paths, command_line):
    words = ("eval", paths / "base", "--tasks", "builtin_choice,builtin_answer", "--limit", "3", "--depth", "full,uls:50%")
    status, out, err = command_line(*words, "--out", paths / "scores")
    assert status == 0, err
    assert "builtin_choice (acc ↑)" in out and "uls:3" in out and f"report: {paths / 'scores' / 'report.html'}" in out
    assert "builtin_choice at uls:3: acc" in err and "Next: depthdial generate" in out
    again = command_line(*words, "--out", paths / "scores")
    assert again[0] == 0 and again[1] == out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--tasks", "builtin_choise"), "There is no task 'builtin_choise': use builtin_choice"),
        (("--depth", "uls:9"), "9"),
        (("--limit", "0"), "Invalid limit 0"),
        (("--prompt-depth", "half"), "Unknown prompt depth 'half'"),
    ],
)
def test_bad_input(paths, command_line, arguments, told, monkeypatch):
    from tests.evals.test_evaluate import _own_only

    monkeypatch.setattr("depthdial.evals.catalogue.TaskManager", _own_only)
    status, _, err = command_line("eval", paths / "base", "--out", paths / "scores", *arguments)
    assert status == 2 and told in err and err.startswith("depthdial: ") and err.count("\n") == 1


def test_without_the_harness(paths, command_line, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest))
    status, _, err = command_line("eval", paths / "base", "--out", paths / "scores")
    assert (status, err.count("\n")) == (2, 1) and "pip install 'depthdial[eval]'" in err
