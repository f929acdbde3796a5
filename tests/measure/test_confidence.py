from __future__ import annotations

import pytest
import torch

from depthdial.errors import InputError
from depthdial.measure.confidence import exit_thresholds

TEXTS = [
    ([1, 5, 9], [4, 7, 8, 12, 13, 6]),
    ([1, 7, 11, 14, 15, 16], [9, 10, 11, 5]),
    ([6], [8, 9, 10, 4, 20, 21, 22, 23, 24]),
    ([1, 5], [17, 18]),
]
TARGETS = (0.4, 0.6, 0.8, 1.0)


def mean_layers(model, texts, exit) -> float:
    """Counted by hand on the plain model's hidden states, one text at a time: where each token would leave."""
    layers = []
    for prompt, response in texts:
        with torch.no_grad():
            states = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True).hidden_states
        for place in range(len(prompt), len(prompt) + len(response) - 1):  # the last token is read by nobody
            leaves = 6
            for layer in range(5, exit.first_layer - 1, -1):
                before, now = states[layer - 1][0, place], states[layer][0, place]
                if exit.measure == "margin":
                    with torch.no_grad():
                        top = model.lm_head(model.model.norm(now)).softmax(-1).topk(2).values
                    confidence = top[0] - top[1]
                else:
                    confidence = torch.nn.functional.cosine_similarity(before, now, dim=0)
                if confidence > exit.threshold:
                    leaves = layer
            layers.append(leaves)
    return sum(layers) / len(layers)


@pytest.mark.parametrize("measure", ["margin", "saturation"])
def test_thresholds_meet_their_targets_on_the_texts(model, tokenizer, measure):
    exits = exit_thresholds(model, tokenizer, TEXTS, measure, TARGETS)
    assert [(one.measure, one.first_layer) for one in exits] == [(measure, 1)] * 4
    thresholds = [one.threshold for one in exits]
    assert thresholds == sorted(thresholds) and thresholds[0] < thresholds[2] and thresholds[-1] == 1
    # A token that stays or leaves moves the mean over these 17 by 5/17 of a layer at most.
    for target, one in zip(TARGETS, exits, strict=True):
        assert mean_layers(model, TEXTS, one) == pytest.approx(6 * target, abs=0.31)


def test_neither_order_nor_padding_matters(model, tokenizer):
    one, other = (exit_thresholds(model, tokenizer, texts, "margin", TARGETS) for texts in (TEXTS, TEXTS[::-1]))
    assert [a.threshold for a in one] == pytest.approx([b.threshold for b in other], abs=1e-5)


def test_a_later_first_exit(model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    (found,) = exit_thresholds(model, tokenizer, TEXTS, "margin", [0.75], first_layer=3)
    assert_same(before, weights_of(model))
    assert found.first_layer == 3 and mean_layers(model, TEXTS, found) == pytest.approx(4.5, abs=0.2)


@pytest.mark.parametrize(
    ("texts", "targets", "message"),
    [
        (TEXTS, [0.5, 0.1], "runs 17% to 100% of them, not 10%"),
        (TEXTS, [1.2], "not 120%"),
        ([], [0.5], "calibrated on responses of two tokens or more"),
        ([([1], [5])], [0.5], "calibrated on responses of two tokens or more"),
    ],
)
def test_bad_input(model, tokenizer, texts, targets, message):
    with pytest.raises(InputError, match=message):
        exit_thresholds(model, tokenizer, texts, "margin", targets)
