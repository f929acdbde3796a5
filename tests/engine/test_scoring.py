from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError

IDS = [4, 6, 8, 10, 5, 7]


@pytest.mark.parametrize("depth", ["full", "uls:50%", "0,1,5"])
def test_a_text_is_scored_as_its_view_scores_it(model, tokenizer, depth):
    view = dd.view(model, dd.Route.parse(depth, 6))
    with torch.no_grad():
        expected = view(torch.tensor([IDS])).logits[0].log_softmax(-1)
    with dd.Engine(model, tokenizer) as engine:
        scored = engine.score(IDS, depth=depth, logprobs=2).result()
    assert scored.tokens == tuple(IDS) and scored.logprobs[0] is None and scored.route == dd.Route.parse(depth, 6)
    for place, one in enumerate(scored.logprobs[1:], 1):
        assert one.token == IDS[place]
        assert one.logprob == pytest.approx(expected[place - 1, IDS[place]].item(), abs=1e-4)
        assert one.top[0][0] == expected[place - 1].argmax().item() and len(one.top) == 2


def test_a_long_text_is_scored_in_parts(model, tokenizer, monkeypatch):
    with dd.Engine(model, tokenizer) as engine:
        whole = engine.score(IDS * 4, depth="uls:50%").result()
        monkeypatch.setattr("depthdial.engine.scoring._CHUNK_TOKENS", 5)
        parts = engine.score(IDS * 4, depth="uls:50%").result()
    assert [one.logprob for one in parts.logprobs[1:]] == pytest.approx(
        [one.logprob for one in whole.logprobs[1:]], abs=1e-4
    )


def test_one_token_has_nothing_before_it(model, tokenizer):
    with dd.Engine(model, tokenizer) as engine:
        assert engine.score([5]).result().logprobs == (None,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "empty"), ([5, 99], "Token 99 is not in the vocabulary"), ([-1], "Token -1"), ([5] * 200, "context is 128")],
)
def test_texts_that_cannot_be_scored(model, tokenizer, ids, message):
    with dd.Engine(model, tokenizer) as engine, pytest.raises(InputError, match=message):
        engine.score(ids)


def test_fidelity_is_that_of_a_sweep(model, tokenizer):
    """Agreement and KL on a given answer, against both models' own logits."""
    with dd.Engine(model, tokenizer) as engine:
        request = engine.submit("the cat sat", depth="uls:50%", max_new_tokens=8)
        answer = request.result()
        found = engine.fidelity(request).result()
        full = engine.submit("the cat sat", max_new_tokens=4)
        full.result()
        assert engine.fidelity(full).result() == type(found)(1.0, 0.0, 4)
    prompt = list(request.prompt_ids)
    ids = torch.tensor([[*prompt, *answer.tokens]])
    with torch.no_grad():
        greedy = model(ids).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    # What the route would have chosen at each place is what it did choose.
    agreed = [own == other for own, other in zip(answer.tokens, greedy, strict=True)]
    assert found.n_tokens == 8 and found.agreement == pytest.approx(sum(agreed) / 8)
    assert 0 < found.agreement < 1 and found.kl > 0


def test_jobs_run_beside_answers_and_end_with_the_engine(model, tokenizer):
    engine = dd.Engine(model, tokenizer)
    request = engine.submit("the cat", max_new_tokens=64)
    scored = [engine.score(IDS) for _ in range(4)]
    assert all(one.result(20).logprobs[1] is not None for one in scored)
    request.result()
    engine.close(cancel=True)
    with pytest.raises(InputError, match="closed"):
        engine.score(IDS)


def test_an_error_of_a_job_is_its_own(model, tokenizer, monkeypatch):
    def boom(*_, **__):
        raise ValueError("boom")

    with dd.Engine(model, tokenizer) as engine:
        monkeypatch.setattr("depthdial.engine.engine.score_text", boom)
        with pytest.raises(RuntimeError, match="boom"):
            engine.score(IDS).result(20)
        assert engine.run("the cat", max_new_tokens=2)[0].new_tokens <= 2
