from __future__ import annotations

import doctest
import inspect

import pytest
import torch

from depthdial.engine.prefill import PrefillInParts, left_padded, prefill
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.routes import Route
from tests.tiny import REPRESENTATIVES, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("layers", [range(6), (0, 2, 5)])
def test_parts_make_up_the_whole(name, layers):
    model, route = tiny(name), Route(tuple(layers), 6)
    for prompts in (PROMPTS[:1], PROMPTS):
        ids, mask = left_padded(prompts, 0, "cpu")
        with torch.no_grad():
            whole = prefill(model, ids, mask, route)
            parts, made = PrefillInParts(model, ids, mask, route), None
            left = []
            while made is None:
                left.append(parts.remaining_tokens)
                made = parts.advance(3)
        assert left == [7, 4, 1] and parts.remaining_tokens == 0
        torch.testing.assert_close(made.logits, whole.logits, rtol=1e-4, atol=1e-4)
        for mine, other in zip(made.cache.layers, whole.cache.layers, strict=True):
            seen = mine.keys.shape[2]
            torch.testing.assert_close(mine.keys[:1], other.keys[:1, :, -seen:], rtol=1e-4, atol=1e-4)
        assert made.route == route and made.prefill_sec > 0
        assert torch.equal(made.input_ids, ids) and torch.equal(made.attention_mask, mask)


def test_a_part_that_is_long_enough_is_the_whole_bit_for_bit(model, tokenizer):
    session = Session.of(model, tokenizer)
    whole, part = session.prefill_ids(PROMPTS), session.prefill_in_parts(PROMPTS).advance(100)
    assert torch.equal(whole.logits, part.logits)
    with pytest.raises(InputError, match="did not see the prompt"):
        session.prefill_in_parts(PROMPTS, Route((0, 1), 6)).advance(100).require_layers(session.full)


def test_the_example(model):
    names = {"PrefillInParts": PrefillInParts, "model": model, "torch": torch}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(PrefillInParts) or "", names, "parts", None, 0)
    told: list[str] = []
    with torch.no_grad():
        doctest.DocTestRunner().run(example, out=told.append)
    assert example.examples and not told, "".join(told)
