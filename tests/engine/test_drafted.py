"""Drafted answers in an engine are the plain ones."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.engine.batch import RowBatch
from depthdial.engine.drafted import DraftedGroup
from depthdial.engine.groups import RowGroup
from depthdial.routes import Route
from tests.conftest import make_llama

PROMPTS = ["the cat", "a dog sat on the mat", "one two three", "it was"]
DRAFT = Route((0, 1, 2, 4, 5), 6)


LOSSLESS = dd.Lossless(DRAFT, draft_tokens=2)


@pytest.fixture
def ran(monkeypatch):
    """Which groups made steps."""
    kinds: set[type] = set()
    for kind in (DraftedGroup, RowGroup):

        def stepped(self, _step=kind.step, _kind=kind):
            kinds.add(_kind)
            return _step(self)

        monkeypatch.setattr(kind, "step", stepped)
    return kinds


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 1.2, "seed": 5}, {"logprobs": 2}, {"stop_strings": ["sat", "two"]}],
)
def test_drafted_answers_are_the_plain_ones(model, tokenizer, ran, options):
    expected = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=11, **options)
    with dd.Engine(model, tokenizer) as engine:
        answers = engine.run(PROMPTS, depth=LOSSLESS, max_new_tokens=11, **options)
        alone = engine.submit(PROMPTS[1], depth=LOSSLESS, max_new_tokens=11, **options)
        assert "".join(alone) == alone.result().text == expected[1].text
        stats = engine.stats()
    assert [a.tokens for a in answers] == [e.tokens for e in expected]
    assert [a.finish_reason for a in answers] == [e.finish_reason for e in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert [one.token for one in answer.logprobs or ()] == [one.token for one in other.logprobs or ()]
        assert [len(one.top) for one in answer.logprobs or ()] == [len(one.top) for one in other.logprobs or ()]
        assert (answer.speculation.rounds and answer.layers_run != 6) or answer.new_tokens < 3
    assert ran == {DraftedGroup} and stats.kv_bytes == 0
    assert stats.new_tokens == sum(map(len, (e.tokens for e in expected))) + expected[1].new_tokens


def test_others_beside_them_run_in_plain_rows(model, tokenizer, ran):
    expected = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=9)
    with dd.Engine(model, tokenizer, max_rows=2) as engine:
        answers = engine.run(PROMPTS, depth=[LOSSLESS, "full", LOSSLESS, "full"], max_new_tokens=9)
    assert [a.tokens for a in answers] == [e.tokens for e in expected]
    assert RowGroup in ran
    assert str(answers[2].speculation) == "speculation: off (others ran beside it)" and answers[2].layers_run == 6


def test_a_callers_own_criteria_run_in_plain_rows(model, tokenizer, ran):
    with dd.Engine(model, tokenizer) as engine:
        answer = engine.submit("the cat", depth=LOSSLESS, max_new_tokens=9, stopping_criteria=[lambda ids, _: False])
        assert answer.result().tokens == dd.generate(model, tokenizer, "the cat", max_new_tokens=9)[0].tokens
    assert ran == {RowGroup}


def test_cancelled_and_failed_ones_leave(model, tokenizer, ran, monkeypatch):
    run, failures = RowBatch.run, iter([False, False, True])

    def failing(self, *args, **kwargs):
        if next(failures, False):
            raise MemoryError
        return run(self, *args, **kwargs)

    with dd.Engine(model, tokenizer) as engine:
        engine.run("a dog", max_new_tokens=2)  # what is tried of a model's kind is tried now
        monkeypatch.setattr(RowBatch, "run", failing)
        answers = engine.run(PROMPTS, depth=LOSSLESS, max_new_tokens=9)
        assert [a.tokens for a in answers] == [g.tokens for g in dd.generate(model, tokenizer, PROMPTS, max_new_tokens=9)]
        request = engine.submit("the cat", depth=LOSSLESS, max_new_tokens=100, eos_token_id=None)
        next(iter(request))
        request.cancel()
        engine.run("a dog", max_new_tokens=2)
        assert engine.stats().running == 0 and engine.stats().kv_bytes == 0
    assert ran == {DraftedGroup, RowGroup}


@pytest.mark.parametrize("depth", ["lossless", "lossless:uls:50%", "lossless:lookup"])
@pytest.mark.filterwarnings("ignore::depthdial.errors.RouteWarning")
def test_lossless_is_the_untouched_full_model(model, tokenizer, with_lora, depth):
    expected = dd.generate(make_llama(), tokenizer, PROMPTS, max_new_tokens=12)
    adapted = with_lora(model)
    with dd.Engine(adapted, tokenizer) as engine:
        for _ in range(2):
            answers = engine.run(PROMPTS, depth=depth, max_new_tokens=12)
            assert [a.tokens for a in answers] == [e.tokens for e in expected]
        requests = [engine.submit(one, depth=depth, max_new_tokens=12) for one in PROMPTS]
        beside = engine.submit(PROMPTS[0], depth="uls:3", max_new_tokens=12)
        assert [one.result().tokens for one in requests] == [e.tokens for e in expected]
        assert (
            beside.result().tokens == dd.generate(adapted, tokenizer, PROMPTS[0], depth="uls:3", max_new_tokens=12)[0].tokens
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_new_tokens": 1}, "nothing to draft"),
        ({"guidance_scale": 1.5}, "guidance_scale runs two prompts at once"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits processors that may keep a state would see drafts"),
        ({"watermarking_config": {"bias": 2.0}}, "logits processors that may keep a state would see drafts"),
        ({"stopping_criteria": [lambda ids, _: False]}, "stopping criteria of the caller's run by themselves"),
    ],
)
def test_why_nothing_is_drafted_is_told(model, tokenizer, options, why):
    given = {"max_new_tokens": 6, **options}
    with dd.Engine(model, tokenizer) as engine:
        answer = engine.submit("the cat", depth=LOSSLESS, **given).result()
    assert answer.tokens == dd.generate(model, tokenizer, "the cat", **given)[0].tokens
    assert str(answer.speculation) == f"speculation: off ({why})"
