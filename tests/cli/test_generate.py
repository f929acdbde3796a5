"""`depthdial generate`: what the library answers, from every way of asking."""

from __future__ import annotations

import io
import sys
import types

import pytest

import depthdial as dd

pytestmark = pytest.mark.filterwarnings("always::depthdial.errors.RouteWarning")
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "base")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def said(command_line, folder):
    def run(*arguments):
        status, out, err = command_line("generate", folder, *arguments, "--max-new-tokens", 6)
        assert status == 0, err
        return out, err

    return run


def expected(folder, prompts=None, **options):
    model, tokenizer = dd.load(str(folder))
    return dd.generate(model, tokenizer, prompts, max_new_tokens=6, **options)[0].text


@pytest.mark.parametrize(
    ("depth", "layers"), [("uls:50%", 3), ("0.5", 3), ("50%", 3), ("4", 4), ("0,2,5", 3), ("1.0", 6), ("100%", 6)]
)
@pytest.mark.parametrize("option", ["--depth", "--route"])
def test_a_depth_is_taken_under_both_names(said, folder, option, depth, layers):
    out, err = said("the cat", option, depth)
    assert f"{layers} of 6 layers" in err
    with pytest.warns() if "Nothing is known" in err else _nothing():
        assert out.strip() == expected(folder, "the cat", depth=depth).strip()


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_stop_system_temperature_and_seed(said, folder):
    talk = [{"role": "system", "content": "in one"}, {"role": "user", "content": "the cat"}]
    assert said("the cat", "--system", "in one")[0].strip() == expected(folder, messages=talk)
    drawn = [said("the cat", "--temperature", 5, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].strip() == expected(folder, "the cat", do_sample=True, temperature=5.0, seed=1)
    plain = said("the cat", "--temperature", 0)[0].split()
    cut = said("the cat", "--stop", "never", "--stop", plain[1])[0].split()
    assert cut == plain[: plain.index(plain[1]) + 1]


def test_penalties_biases_and_log_probabilities(said, folder):
    options = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {7: 3.0, 9: -100.0}}
    asked = ("--presence-penalty", 1.5, "--frequency-penalty", -0.5, "--logit-bias", "7=3", "--logit-bias", "9=-100")
    out, err = said("the cat", *asked, "--logprobs", 2)
    assert out.strip() == expected(folder, "the cat", **options) != expected(folder, "the cat")
    model, tokenizer = dd.load(str(folder))
    (answer,) = dd.generate(model, tokenizer, "the cat", max_new_tokens=6, logprobs=2, **options)
    for one in answer.logprobs:
        (first, p), (second, q) = ((tokenizer.decode([token]), logprob) for token, logprob in one.top)
        assert f"{tokenizer.decode([one.token])!r} {one.logprob:.3f} | {first!r} {p:.3f}  {second!r} {q:.3f}" in err


def test_several_answers_are_numbered(said, folder):
    model, tokenizer = dd.load(str(folder))
    options = {"do_sample": True, "temperature": 5.0, "seed": 1, "num_return_sequences": 3}
    answers = dd.generate(model, tokenizer, "the cat", max_new_tokens=6, **options)
    out, err = said("the cat", "-n", 3, "--temperature", 5, "--seed", 1)
    assert [line for line in out.splitlines() if line] == [f"[{i}/3] {a.text}" for i, a in enumerate(answers, 1)]
    assert err.count("6 of 6 layers") == 3


def test_a_prompt_from_standard_input(said, folder, monkeypatch, command_line):
    def stdin(content: bytes):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))

    stdin(b"the cat\n")
    assert said("-")[0] == said("the cat")[0]
    stdin(b"\xff")
    status, _, err = command_line("generate", folder, "-")
    assert status == 2 and "Standard input is not UTF-8" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--depth", "24"), "asks for 24 of 6 layers"),
        (("--route", "3-1"), "runs backwards"),
        (("--temperature", "-1"), "temperature=-1.0 cannot be used"),
        (("-n", "2"), "-n 2 is for sampled answers, since greedy ones are all the same: give --temperature too."),
        (("-n", "0"), "Invalid n 0"),
        (("--presence-penalty", "3"), "Invalid presence_penalty 3"),
        (("--logit-bias", "cat"), "--logit-bias 'cat' is not a token id and a number: give such as 50=-100."),
        (("--logit-bias", "cat=1"), "logit_bias is by token ids"),
        (("--logprobs", "-1"), "Invalid logprobs -1"),
        (("--stop", ""), "A stop string is a text of at least one character"),
        (("--system", "in one", "--template", "plain"), "Messages need the tokenizer's chat template"),
    ],
)
def test_bad_input_is_one_sentence(command_line, folder, arguments, told):
    status, _, err = command_line("generate", folder, "the cat", *arguments)
    assert status == 2 and told in " ".join(err.split()) and "Traceback" not in err
