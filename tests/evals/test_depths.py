"""Controllers and gates in the harness: contexts that decide about their own route, weights that come with a policy."""

from __future__ import annotations

import copy

import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError
from tests.evals.documents import responses
from tests.tiny_controllers import fit_tiny, prompts

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from depthdial.evals.harness import quiet_harness
from tests.evals.test_lm_eval import asked, generating, make


@pytest.fixture(scope="module")
def fitted():
    from tests.conftest import make_llama, make_tokenizer

    model, tokenizer = make_llama(), make_tokenizer()
    return model, tokenizer, fit_tiny(model, tokenizer)


PROMPTS = prompts()[52:]
PAIRS = [(prompt, f" {choice}") for prompt in PROMPTS for choice in ("sat on the mat", "is", "two or three")]


@pytest.mark.parametrize("prompt_depth", ["route", "full"])
def test_a_controller_scores_each_context_on_the_route_that_it_picks(fitted, prompt_depth):
    model, tokenizer, controller = fitted
    lm = make(model, tokenizer, controller, prompt_depth=prompt_depth)
    found = lm.loglikelihood(asked(*PAIRS))
    contexts = list(dict.fromkeys(context for context, _ in PAIRS))
    answers = dd.generate(model, tokenizer, contexts, depth=controller, max_new_tokens=2, template="paper")
    picked = {context: answer.route for context, answer in zip(contexts, answers, strict=True)}
    assert len(set(picked.values())) > 1
    for route in set(picked.values()):
        places = [i for i, (context, _) in enumerate(PAIRS) if picked[context] == route]
        of_route = make(model, tokenizer, route, prompt_depth=prompt_depth)
        expected = of_route.loglikelihood(asked(*[PAIRS[i] for i in places]))
        assert [found[i][0] for i in places] == pytest.approx([one[0] for one in expected], abs=1e-4)


def test_a_controller_answers_as_in_generate(fitted):
    model, tokenizer, controller = fitted
    lm = make(model, tokenizer, controller)
    found = lm.generate_until(generating(*PROMPTS, until=[], max_gen_toks=5))
    answers = dd.generate(model, tokenizer, PROMPTS, depth=controller, max_new_tokens=5, template="paper")
    assert found == [one.text for one in answers]
    assert lm.tally.layers == [one.layers_run or 0 for one in answers] and lm.tally.prompts == {"full"}


def test_a_controller_of_chat_prompts_asks_for_them(fitted):
    model, tokenizer, controller = fitted
    with pytest.raises(InputError, match="fitted to prompts of template 'paper': leave out --chat"):
        make(model, tokenizer, controller, is_chat=True)


@pytest.mark.slow
def test_gates_run_on_the_weights_that_they_came_with(
    model, tokenizer, folder, tmp_path, with_lora, weights_of, assert_same
):
    from depthdial.hf.weights import weights_hash
    from depthdial.views.tokens.gates import GateBase, GateConfig, TokenGates
    from depthdial.views.view import quiet_view

    gates = TokenGates(GateConfig(6, 32, run_bias=0.6), GateBase("tiny", weights_hash(model), "float32"))
    saved = gates.save_pretrained(tmp_path / "gates")
    with_lora(quiet_view(model, range(6))).save_pretrained(saved)
    before = weights_of(model)
    lm = make(model, tokenizer, str(saved))
    found = responses(lm, folder, "choice", "answer")
    assert_same(before, weights_of(model))
    adapted, own = dd.load_gates(saved, model)
    beside = make(adapted, tokenizer, dd.TokenDepth(own.policy("sampled"), 6))
    expected = responses(beside, folder, "choice", "answer")
    assert found["answer"] == expected["answer"]
    told, theirs = ([resp[0][0] for resps in each["choice"] for resp in resps] for each in (found, expected))
    assert told == pytest.approx(theirs, abs=1e-4)
    assert 0 < sum(lm.tally.layers) / len(lm.tally.layers) < 6


def test_an_adapter_is_part_of_the_model(model, tokenizer, folder, with_lora, tmp_path):
    """Its view has the scores of its saved folder, which holds it merged."""
    adapted = with_lora(copy.deepcopy(model))
    dd.view(adapted, "uls:4").save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    one = responses(make(adapted, tokenizer, "uls:4"), folder, "choice")["choice"]
    with quiet_harness():
        plain = HFLM(pretrained=str(tmp_path / "saved"), device="cpu", batch_size=4)
    other = responses(plain, folder, "choice")["choice"]
    bare = responses(make(model, tokenizer, "uls:4"), folder, "choice")["choice"]
    flat = [torch.tensor([resp[0][0] for resps in each for resp in resps]) for each in (one, other, bare)]
    torch.testing.assert_close(flat[0], flat[1], rtol=1e-4, atol=1e-4)
    assert (flat[0] - flat[2]).abs().max() > 0.05
