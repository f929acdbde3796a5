"""The next tokens of several requests at once: what goes wrong in one is not seen by another."""

from __future__ import annotations

import torch

import depthdial as dd


class Counting:
    """A processor that keeps a state: it asks for another token at each call."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, ids, scores):
        self.n_calls += 1
        return scores.index_fill(-1, torch.tensor([4 + self.n_calls % 5]), 99.0)


class Failing:
    def __init__(self, at: int) -> None:
        self.n_left = at

    def __call__(self, ids, scores):
        self.n_left -= 1
        if self.n_left < 0:
            raise ArithmeticError("boom")
        return scores


def test_a_processor_that_counts_its_calls_is_called_once_a_token_though_another_fails(model, tokenizer):
    given = {"max_new_tokens": 12, "eos_token_id": None}
    expected = dd.generate(model, tokenizer, "the cat", logits_processor=[Counting()], **given)[0].tokens
    counting = [Counting() for _ in range(4)]
    with dd.Engine(model, tokenizer) as engine:
        requests = []
        for at, one in enumerate(counting):
            requests.append(engine.submit("the cat", logits_processor=[one], **given))
            engine.submit("a dog", logits_processor=[Failing(at)], **given)
        assert [request.result().tokens for request in requests] == [expected] * 4
        assert [one.n_calls for one in counting] == [12] * 4
