"""`depthdial export`: what it writes, says and refuses."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.exports.quality import SHIPPED


@pytest.fixture
def export(paths, command_line):
    def go(*arguments, out="out"):
        data = ("--data", paths / "lessons.jsonl", "--max-new-tokens", "3", "--limit", "6")
        return command_line("export", paths / "base", paths / out, *data, *arguments)

    return go


def test_it_prints_both_numbers_and_how_to_run_it(export, paths) -> None:
    status, out, err = export("--depth", "uls:3")
    assert status == 0, err
    assert "rows: 6 to judge, 12 unused" in out
    assert f"exported: {paths / 'out'} (3 of 6 layers)" in out and "loaded again: logits equal bit for bit" in out
    assert SHIPPED in out and "route, prompt at full depth" in out
    assert "As exported, prompts run on the route too: ROUGE-L is" in out
    assert (
        f"run: vllm serve {paths / 'out'}" in out and f"Next: depthdial check {paths / 'out'} {paths / 'base'} --data" in out
    )
    assert dd.load(paths / "out")[0].config.num_hidden_layers == 3
    again = export("--depth", "uls:3")
    assert again[0] == 0 and "found: " in again[1]


def test_it_writes_without_measuring(export, paths) -> None:
    status, out, _ = export("--depth", "0-3", "--to", "vllm", "--no-measure")
    assert status == 0 and "rows:" not in out
    assert f"run: DEPTHDIAL_ROUTE={paths / 'out' / 'depthdial_route.json'} vllm serve {paths / 'base'}" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--depth", "uls:3", "--to", "onnx"], "Unknown way out 'onnx': use hf, gguf, draft or vllm."),
        (["--depth", "rls:3@0"], "'rls:3@0' draws other layers for every sequence"),
        (["--depth", "lossless"], "runs every layer and drafts on some of them"),
        (["--depth", "uls:3", "--to", "gguf"], "A tokenizer of the kind WordLevel is not written"),
        (["--depth", "none.json:24"], "There is no route family file none.json"),
        ([], "Missing option '--depth'"),
    ],
)
def test_bad_input_is_one_sentence(export, paths, arguments, told) -> None:
    status, _, err = export(*arguments)
    assert status == 2 and told in err and "Traceback" not in err
    assert not (paths / "out").exists()


def test_a_foreign_folder_is_refused(export, paths) -> None:
    (paths / "mine").mkdir()
    (paths / "mine" / "notes.txt").write_text("x")
    status, _, err = export("--depth", "uls:3", out="mine")
    assert status == 2 and "is not empty, and holds no export of Depthdial" in err
