"""The harness's model: a view has the scores of its saved folder, and every kind of depth is scored as it runs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError
from depthdial.routes import Route
from tests.evals.documents import CHOICES, responses

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from depthdial.evals.harness import quiet_harness
from depthdial.evals.lm_eval import DepthdialLM
from depthdial.evals.local_tasks import FOLDER

ALL = ("choice", "letter", "answer", "text", "last")
ROUTE = "0,2,3,5"


def make(model, tokenizer, depth="full", **options):
    return DepthdialLM(model, depth, tokenizer=tokenizer, **{"batch_size": 4, "progress": False, **options})


def asked(*pairs):
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def generating(*contexts, **settings):
    return [Instance("generate_until", {}, (context, dict(settings)), 0) for context in contexts]


def test_a_view_has_the_scores_of_its_saved_folder(model, tokenizer, folder, tmp_path):
    saved = tmp_path / "saved"
    dd.view(model, ROUTE).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    with quiet_harness():
        plain = HFLM(pretrained=str(saved), device="cpu", batch_size=4)
    assert responses(make(model, tokenizer, ROUTE), folder, *ALL) == responses(plain, folder, *ALL)


def test_full_depth_is_the_model_itself(model, tokenizer, folder):
    with quiet_harness():
        plain = HFLM(pretrained=copy.deepcopy(model), tokenizer=tokenizer, batch_size=4)
    expected = responses(plain, folder, *ALL)
    for depth in ("full", "lossless"):
        assert responses(make(model, tokenizer, depth), folder, *ALL) == expected


def test_the_model_and_the_tokenizer_are_not_changed(model, tokenizer, folder, weights_of, assert_same):
    before, told = weights_of(model), tokenizer.to_str() if hasattr(tokenizer, "to_str") else repr(tokenizer)
    model.train()
    before = weights_of(model)
    responses(make(model, tokenizer, ROUTE), folder, *ALL)
    responses(make(model, tokenizer, "uls:3", prompt_depth="full"), folder, *ALL)
    assert_same(before, weights_of(model))
    assert told == (tokenizer.to_str() if hasattr(tokenizer, "to_str") else repr(tokenizer))


def test_behind_a_full_context_only_the_first_token_is_the_full_models(model, tokenizer, dense_reference):
    route = Route((0, 2, 4), 6)
    pairs = [(row["question"], f" {choice}") for row in CHOICES for choice in row["choices"]]
    found = make(model, tokenizer, route, prompt_depth="full").loglikelihood(asked(*pairs))
    for (context, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        ids, more = (tokenizer(text)["input_ids"] for text in (context, continuation))
        _, _, logits = dense_reference(model, ids, more[:-1], route)
        told = logits[len(ids) - 1 :].log_softmax(-1)
        assert total == pytest.approx(told.gather(1, torch.tensor(more)[:, None]).sum().item(), abs=1e-4)
        assert is_greedy == (told.argmax(-1).tolist() == more)


def test_the_trap_of_single_tokens(model, tokenizer, folder):
    """With full contexts they have the full model's scores at any depth; by default the route's own."""
    full = responses(make(model, tokenizer), folder, "letter")
    shallow, behind = make(model, tokenizer, "uls:3"), make(model, tokenizer, "uls:3", prompt_depth="full")
    assert responses(behind, folder, "letter")["letter"] == [
        [[pytest.approx(one, abs=1e-5) for one in resp] for resp in resps] for resps in full["letter"]
    ]
    assert behind.tally.single == behind.tally.continuations == 15 and set(behind.tally.layers) == {6}
    told = [resp[0][0] for resps in responses(shallow, folder, "letter")["letter"] for resp in resps]
    assert told != pytest.approx([resp[0][0] for resps in full["letter"] for resp in resps], abs=0.01)
    assert set(shallow.tally.layers) == {3}


def test_rolling_likelihoods_are_the_routes_either_way(model, tokenizer, folder):
    one = responses(make(model, tokenizer, "uls:3"), folder, "text")
    assert responses(make(model, tokenizer, "uls:3", prompt_depth="full"), folder, "text") == one


@pytest.mark.parametrize("prompt_depth", ["route", "full"])
def test_a_batch_does_not_matter(model, tokenizer, folder, prompt_depth):
    def told(batch_size):
        lm = make(model, tokenizer, "uls:4", prompt_depth=prompt_depth, batch_size=batch_size)
        return [resp[0] for resps in responses(lm, folder, "choice")["choice"] for resp in resps]

    for one, other in zip(told(1), told(7), strict=True):
        assert one == (pytest.approx(other[0], abs=1e-4), other[1])


def test_a_token_policy_that_is_a_route_has_its_scores(model, tokenizer, folder):
    """Tokens of a skipped layer are seen by none of its queries: a policy of one route is that route."""
    route = Route((0, 2, 4), 6)
    policy = dd.TokenDepth(dd.Bernoulli(tuple(1.0 if i in route.layers else 0.0 for i in range(6))), 6, key_values="drop")
    for prompt_depth in ("route", "full"):
        by_token = make(model, tokenizer, policy, prompt_depth=prompt_depth)
        expected = responses(make(model, tokenizer, route, prompt_depth=prompt_depth), folder, "choice", "last")
        found = responses(by_token, folder, "choice", "last")
        for name, resps in expected.items():
            flat = [value for resp in resps for one in resp for value in one]
            assert [value for resp in found[name] for one in resp for value in one] == [
                (pytest.approx(total, abs=1e-4), is_greedy) for total, is_greedy in flat
            ]


def test_chance_of_a_token_policy_is_that_of_its_context(model, tokenizer, folder):
    policy = dd.TokenDepth(dd.Bernoulli((0.5,) * 6, seed=3), 6)
    found = [responses(make(model, tokenizer, policy, batch_size=n), folder, "choice")["choice"] for n in (1, 5)]
    one, other = ([resp[0][0] for resps in each for resp in resps] for each in found)
    assert one == pytest.approx(other, abs=1e-4)


def test_a_random_rule_draws_for_each_context(model, tokenizer, folder):
    lm = make(model, tokenizer, "rls:3@1")
    found = responses(lm, folder, "choice")["choice"]
    by_route = {}
    for layers in {tuple(dd.Route.parse("rls:3@1", n_layers=6).for_sequence(i).layers) for i in range(200)}:
        by_route[layers] = responses(make(model, tokenizer, Route(layers, 6)), folder, "choice")["choice"]
    used = set()
    for place, resps in enumerate(found):
        told = [resp[0][0] for resp in resps]
        fits = [r for r, each in by_route.items() if told == pytest.approx([resp[0][0] for resp in each[place]], abs=1e-4)]
        assert fits
        used.add(fits[0])
    assert len(used) > 1


def test_stop_strings_end_an_answer_before_them(model, tokenizer):
    lm = make(model, tokenizer, "uls:4")
    free = lm.generate_until(generating("the cat", "a dog ran", until=[], max_gen_toks=12))
    stop = free[0].split()[3]
    cut = lm.generate_until(generating("the cat", until=[stop], max_gen_toks=12))
    assert cut == [free[0].split(stop)[0]] and stop in free[0]


def test_answers_are_those_of_generate(model, tokenizer):
    prompts = ["the cat", "a dog sat on", "one"]
    for prompt_depth in ("route", "full"):
        lm = make(model, tokenizer, "uls:3", prompt_depth=prompt_depth)
        found = lm.generate_until(generating(*prompts, until=["</s>"], max_gen_toks=6))
        options = {"depth": "uls:3", "prompt_depth": prompt_depth, "max_new_tokens": 6, "template": "plain"}
        assert found == [one.text for one in dd.generate(model, tokenizer, prompts, **options)]
        assert lm.tally.prompts == {prompt_depth} and set(lm.tally.layers) == {3}


def test_sampled_answers_follow_the_seed(model, tokenizer):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    found = [
        make(model, tokenizer, "uls:4", seed=seed).generate_until(generating("one", "one", **settings)) for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]  # a request that is repeated draws anew


def test_an_option_that_is_not_honoured_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="num_beams"):
        make(model, tokenizer).generate_until(generating("the cat", until=[], max_gen_toks=4, num_beams=4))


def test_a_long_prompt_is_cut_from_the_left(model, tokenizer):
    lm = make(model, tokenizer, "uls:4", max_length=12)
    long, tail = "the cat sat on " * 10 + "one two three", " ".join(("the cat sat on " * 10 + "one two three").split()[-4:])
    settings = {"until": [], "max_gen_toks": 8}
    assert lm.generate_until(generating(long, **settings)) == lm.generate_until(generating(tail, **settings))
    with pytest.raises(InputError, match="leaves no room"):
        lm.generate_until(generating("one", until=[], max_gen_toks=12))
    with pytest.raises(InputError, match="does not fit the 12"):
        make(model, tokenizer, "uls:4", max_length=12, prompt_depth="full").loglikelihood(asked(("one", " two" * 13)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": "red"}, "takes no argument 'colour'"),
        ({"prompt_depth": "half"}, "Unknown prompt depth 'half'"),
        ({"depth": "uls:9"}, "9"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"batch_size": "many"}, "Invalid batch_size 'many'"),
    ],
)
def test_bad_arguments(model, tokenizer, options, told):
    with pytest.raises(InputError, match=told):
        DepthdialLM(model, **{"tokenizer": tokenizer, **options})


@pytest.mark.slow
def test_the_harnesss_own_command_line(model, tokenizer, folder, tmp_path):
    """`python -m depthdial.evals` knows the model; and the stock command does where a task's own file names the module."""
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    words = (
        *("run", "--model", "depthdial", "--model_args", f"pretrained={tmp_path / 'base'},depth=uls:50%"),
        *("--include_path", str(folder), "--tasks", "tiny_choice,tiny_answer", "--output_path", str(tmp_path / "results")),
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}

    def run(*command):
        whole = [sys.executable, "-m", *command]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)

    done = run("depthdial.evals", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "results").rglob("results_*.json")
    document = json.loads(path.read_text())
    assert document["config"]["depth"] == "uls:3" and document["config"]["prompt_depth"] == "route"
    lm = make(model, tokenizer, "uls:3", batch_size=1)
    right = [max(range(3), key=lambda i: resps[i][0][0]) for resps in responses(lm, folder, "choice")["choice"]]
    expected = sum(one == row["answer"] for one, row in zip(right, CHOICES, strict=True)) / len(CHOICES)
    assert document["results"]["tiny_choice"]["acc,none"] == expected
    stock = run("lm_eval", *words[:5], "--tasks", str(FOLDER / "builtin_choice.yaml"), "--limit", "2")
    assert stock.returncode == 0, stock.stderr[-2000:]
    assert "builtin_choice" in stock.stdout and "acc_norm" in stock.stdout
    wrong = run("depthdial.evals", *words[:4], f"pretrained={tmp_path / 'base'},colour=red", *words[5:])
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith(
        "depthdial: The model depthdial takes no argument"
    )
