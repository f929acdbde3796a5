"""The study of Qwen2.5-Coder: its tasks, how answers are judged, and that pages and committed rows agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_rows
from experiments.qwen.passing import code_of, passes
from experiments.qwen.prepare import PROMPTS, code_split, prepare, question_split, read_rows
from experiments.qwen.results import (
    FAMILIES,
    MODELS,
    certificate_table,
    passed_table,
    read_lines,
    search_table,
    searches,
    table,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "qwen"
QWEN_HASH = "54816de95438343d13a3b0c3a7927fda6b7a62d42dc2debf6ae517081ad120c3"
TASKS = read_rows(PROMPTS)
TESTS = ["assert double(2) == 4", "assert double(-1) == -2"]
GOOD = "def double(x):\n    return 2 * x"


def test_tasks_are_distinct_and_each_has_its_split_a_solution_and_tests() -> None:
    assert len(TASKS) == 120
    assert len({task["instruction"] for task in TASKS}) == len({task["output"].split("(")[0] for task in TASKS}) == 120
    for number, task in enumerate(TASKS):
        assert (task["id"], task["split"]) == (f"code-{number:03d}", code_split(number))
        assert 2 <= len(task["tests"]) <= 3
        assert all(test.startswith("assert ") for test in task["tests"])
        name = task["output"].split("(")[0].removeprefix("def ")
        assert f"`{name}(" in task["instruction"]
        assert all(f"{name}(" in test for test in task["tests"])


def test_every_solution_passes_its_tests() -> None:
    for task in TASKS:
        exec(compile("\n".join([task["output"], *task["tests"]]), task["id"], "exec"), {})  # they are ours


@pytest.mark.slow
def test_solutions_pass_their_tests_and_not_those_of_another_task() -> None:
    for task, other in zip(TASKS[::8], TASKS[1::8], strict=True):
        assert passes(task["output"], task["tests"])
        assert not passes(task["output"], other["tests"])


def test_the_code_of_an_answer() -> None:
    assert code_of(f"Here it is:\n```python\n{GOOD}\n```\nIt doubles.\n```\nother\n```") == GOOD
    assert code_of(f"```\n{GOOD}") == GOOD  # an answer that was cut
    assert code_of(GOOD) == GOOD


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (GOOD, True),
        (f"```python\n{GOOD}\n```", True),
        (GOOD.replace("2 *", "3 *"), False),
        ("def double(x)\n    return", False),
        ("Sure! I can help.", False),
        ("import sys\nsys.exit(0)", False),  # ends well, without a test
        ("import os\nos._exit(0)", False),
        ("import sys\nsys.stdout.write = len\n" + GOOD, True),  # what it does to its own output changes nothing
    ],
)
def test_an_answer_passes_when_all_its_tests_ran_and_hold(answer: str, passed: bool) -> None:
    assert passes(answer, TESTS) is passed


def test_an_endless_answer_is_stopped_and_a_large_one_fails() -> None:
    assert not passes("while True:\n    pass", TESTS, timeout_sec=0.5)
    assert not passes("x = [0] * 10**10\n" + GOOD, TESTS)


def test_files_cannot_be_filled() -> None:
    assert not passes("with open('f', 'w') as f:\n    f.write('x' * 100000)\n" + GOOD, TESTS)


def test_splits_are_written_by_fixed_rules(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"question_id": {i}, "turns": ["Question {i}?", "More?"]}}\n' for i in range(81, 161)))
    prepare(questions, tmp_path / "out")
    n_rows = {
        path.relative_to(tmp_path / "out").as_posix(): len(read_rows(path)) for path in (tmp_path / "out").rglob("*.jsonl")
    }
    assert n_rows == {
        "code/train.jsonl": 24,
        "code/calibration.jsonl": 48,
        "code/test.jsonl": 48,
        "ordinary/train.jsonl": 8,
        "ordinary/calibration.jsonl": 32,
        "ordinary/test.jsonl": 32,
        "mix/train.jsonl": 20,
    }
    assert "tests" not in read_rows(tmp_path / "out" / "code" / "test.jsonl")[0]
    assert (question_split(90), question_split(85), question_split(83)) == ("train", None, "test")


def test_the_times_on_the_page_are_those_of_the_bench() -> None:
    page, bench = (ROOT / "docs" / "qwen.md").read_text(encoding="utf-8"), json.loads((FOLDER / "bench.json").read_text())
    assert bench["weights_hash"] == QWEN_HASH
    secs = {(len(bench["routes"][c["route"]]), c["rows"]): c["p50_sec"] for c in bench["cells"] if c["kind"] == "step"}
    for layers in (28, 25, 22, 20, 17, 14):
        one, four = secs[layers, 1], secs[layers, 4]
        assert f"| {layers} | {1000 * one:.1f} | {1000 * four:.1f} | {4 / four:.1f} |" in page


def test_the_family_that_ships_was_searched_on_tasks_of_the_search_part() -> None:
    family = RouteFamily.load(ROOT / "src" / "depthdial" / "searched" / "qwen2.5-coder-1.5b.json")
    assert family.made_by["settings"]["weights_hash"] == QWEN_HASH
    assert (family.made_by["settings"]["split"], family.made_by["calibration"]["n_sequences"]) == ("train", 20)


def test_the_searches_on_the_page_are_those_of_the_two_families() -> None:
    page = (ROOT / "docs" / "qwen.md").read_text(encoding="utf-8")
    assert search_table() in page
    known = searches()
    for layers, n_layers, kl in known["qwen"]:
        near = min(known["smollm2"], key=lambda one: abs(one[0] / one[1] - layers / n_layers))
        assert kl < near[2] / 2
    three_less = next(kl for layers, _, kl in known["smollm2"] if layers == 27)
    assert next(kl for layers, _, kl in known["qwen"] if layers == 20) < three_less
    dropped = [family.made_by["drop_order"] for family in map(RouteFamily.load, FAMILIES.values())]
    assert f"go first are {', '.join(map(str, dropped[0][:6]))} and {dropped[0][6]};" in page
    settings = [RouteFamily.load(path).made_by["settings"] for path in FAMILIES.values()]
    same = ("task", "split", "source", "screen", "answer_tokens", "template", "max_prompt_tokens")
    assert [settings[0][name] for name in same] == [settings[1][name] for name in same]


def test_the_table_of_test_tasks_is_that_of_the_rows_and_they_hold_no_text() -> None:
    lines, page = read_lines(), (ROOT / "docs" / "qwen.md").read_text(encoding="utf-8")
    assert {line.model for line in lines} == set(MODELS)
    assert table(lines) in page
    assert passed_table(lines) in page
    assert certificate_table() in page
    for name in ("qwen-code", "smollm2-code", "qwen-ordinary", "smollm2-ordinary"):
        rows = load_rows(FOLDER / "rows" / name)
        assert all(rows[text].null_count == rows.num_rows for text in ("answer", "prompt", "reference"))
        ids = set(rows["sequence_id"].to_pylist())
        tests = {task["id"] for task in TASKS if task["split"] == "test"}
        assert ids == tests if name.endswith("code") else len(ids) == 32 and all(one.startswith("mt-") for one in ids)
