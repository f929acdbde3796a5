"""`compare` and `check` from the command line, on a tiny random model."""

from __future__ import annotations

import json

import pytest

import depthdial as dd
from tests.conftest import make_llama
from tests.measure.servers import serving

SMALL = ("--max-new-tokens", "4")


@pytest.fixture
def shipped(paths, model, tokenizer):
    folder = paths / "shipped"
    dd.view(model, "0,1,2,3,5").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_compare_one_prompt(paths, command_line, model, tokenizer):
    status, out, err = command_line("compare", paths / "base", "the cat", "--depths", "full,uls:4", "--max-new-tokens", 6)
    assert status == 0, err
    full, shallow = (dd.generate(model, tokenizer, "the cat", depth=d, max_new_tokens=6)[0] for d in ("full", "uls:4"))
    assert "full" in out and "uls:4" in out
    assert "6 of 6 layers" in out and "4 of 6 layers" in out and "tokens/s" in out
    assert full.text in " ".join(out.split()) and ("{+" in out) == (full.text != shallow.text)
    assert "the same up to token" in out


def test_compare_rows_in_the_terminal_and_as_a_page(paths, command_line):
    rows = ("compare", paths / "base", "--data", paths / "lessons.jsonl", "--depths", "full;0,2,5", *SMALL)
    status, out, err = command_line(*rows, "--limit", 2)
    assert status == 0, err
    assert out.count("full ─") == 2 and "one cat sat" in out
    status, out, err = command_line(*rows, "--out", paths / "out")
    assert status == 0, err
    assert "18 to compare" in out and f"report: {paths / 'out' / 'report.html'}" in out
    assert "Answers side by side" in (paths / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Say what to answer: either one PROMPT, or rows with --data or --task"),
        (("the cat", "--task", "builtin"), "Say what to answer"),
        (("the cat", "--depths", "full"), "There are 1 depths to compare"),
        (("the cat", "--depths", "full,half"), "Unknown route 'half'"),
        (("the cat", "--out", "somewhere"), "--out is for rows"),
    ],
)
def test_bad_comparisons(paths, command_line, arguments, complaint):
    status, out, err = command_line("compare", paths / "base", *arguments)
    assert (status, out) == (2, "") and complaint in err and "Traceback" not in err


def test_check_says_yes_no_or_undecided_and_exits_so(paths, command_line, shipped, tokenizer):
    rows = ("--data", paths / "lessons.jsonl", *SMALL)
    status, out, err = command_line("check", paths / "base", paths / "base", *rows, "--out", paths / "same")
    assert status == 0, err
    assert "yes, 100.0%" in out and "answers that are equal" in out and "18 to judge" in out
    assert json.loads((paths / "same" / "check.json").read_text())["answer"] == "yes"
    assert (paths / "same" / "report.html").exists()
    other = paths / "other"
    make_llama(seed=3).save_pretrained(other)
    tokenizer.save_pretrained(other)
    status, out, err = command_line("check", other, paths / "base", *rows, "--metric", "agreement")
    assert status == 1 and "up to their first difference: no," in out and "Traceback" not in err
    status, out, err = command_line("check", shipped, paths / "base", *rows, "--limit", 1)
    assert status == 1 and "undecided" in out and "on 1 row." in out


def test_check_a_server(paths, command_line, model, tokenizer, monkeypatch):
    def answer(prompt, limit):
        one = dd.generate(model, tokenizer, tokenizer.decode(prompt), max_new_tokens=limit)[0]
        return one.text, "stop" if one.finish_reason == "eos" else "length"

    rows = ("--data", paths / "lessons.jsonl", "--limit", 4, *SMALL)
    with serving(answer) as served:
        served.key = "secret"
        monkeypatch.setenv("THE_KEY", "secret")
        status, out, err = command_line("check", served.url, paths / "base", *rows, "--api-key-env", "THE_KEY")
        assert status == 0, err
        assert f"tiny at {served.url}/v1" in " ".join(out.split()) and "secret" not in out + err
        status, _, err = command_line("check", served.url, paths / "base", *rows)
        assert status == 2 and "answered 401" in err
        status, _, err = command_line("check", served.url, paths / "base", *rows, "--api-key-env", "NO_SUCH")
        assert status == 2 and "The environment variable NO_SUCH holds no API key" in err


def test_check_refuses_what_is_nowhere(paths, command_line):
    status, _, err = command_line("check", "./nowhere", paths / "base", "--data", paths / "lessons.jsonl")
    assert status == 2 and "There is no folder ./nowhere" in err and "Traceback" not in err
