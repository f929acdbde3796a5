"""What `export` wrote, checked by `check` as a user would: a folder and a GGUF file answer as the view does."""

from __future__ import annotations

from pathlib import Path

import pytest

import depthdial as dd
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.exports.ways import GGUF_FILE
from tests.conftest import make_task
from tests.hf.checkpoints import tiny_tokenizer
from tests.hf.gguf_models import tiny_for_gguf

LAYERS = (0, 1, 2, 3, 5)
TASK = make_task(["a a1", "1 a 2", "aa"], ["a", "a1", "2"])


@pytest.mark.parametrize(("to", "more"), [("hf", {}), ("gguf", {"gguf_type": "f32"})])
def test_an_export_answers_as_the_view_does(tmp_path: Path, to: str, more: dict) -> None:
    model, tokenizer = tiny_for_gguf("llama"), tiny_tokenizer()
    dd.export(model, tokenizer, depth=LAYERS, to=to, out=tmp_path / "out", measured=False, **more)
    target = tmp_path / "out" / GGUF_FILE if to == "gguf" else tmp_path / "out"
    result = dd.check(target, model, tokenizer, task=TASK, max_new_tokens=6, keep_text=True)
    prompts = [example.instruction for example in TASK.examples]
    options = {"depth": LAYERS, "prompt_depth": "route", "max_new_tokens": 6}
    expected = [one.text for one in dd.generate(model, tokenizer, prompts, **options)]
    assert result.rows["target_answer"].to_pylist() == expected
    full = [one.text for one in dd.generate(model, tokenizer, prompts, max_new_tokens=6)]
    assert result.rows["full_answer"].to_pylist() == full != expected


def test_rows_that_an_exported_route_was_searched_on_do_not_judge_it(model, tokenizer, small_task, tmp_path: Path) -> None:
    hashes = frozenset(prompt_hashes(small_task)[:3])
    route = dd.Route(LAYERS, 6, "greedy-kl:5", searched_on=hashes)
    dd.export(model, tokenizer, depth=route, out=tmp_path / "out", measured=False)
    with pytest.raises(InputError, match="3 of the 7 sequences"):
        dd.check(tmp_path / "out", model, tokenizer, task=small_task, max_new_tokens=3)
