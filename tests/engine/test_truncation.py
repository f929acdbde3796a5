"""The nucleus without sorting keeps what transformers keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import TopPLogitsWarper

from depthdial.engine.truncation import TopP


class Counted(TopPLogitsWarper):
    """transformers' own, which counts the rows that it is asked to sort."""

    rows = 0

    def __call__(self, input_ids, scores):
        self.rows += len(scores)
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("top_p", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("vocabulary", [3, 64, 65, 1500, 5000])
def test_the_kept_tokens_are_those_of_transformers(top_p, vocabulary):
    torch.manual_seed(0)
    scales = torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 50.0])[:, None]
    scores = scales * torch.randn(len(scales), vocabulary) + 0.001 * torch.rand(len(scales), vocabulary)
    cut = torch.where(scores >= scores.topk(min(3, vocabulary))[0][:, -1:], scores, -torch.inf)
    scores = torch.cat([scores, cut])
    before, own = scores.clone(), Counted(top_p)
    found = TopP(top_p, own)(torch.empty(len(scores), 0), scores)
    expected = TopPLogitsWarper(top_p)(torch.empty(len(scores), 0), scores)
    assert torch.equal(scores, before)
    # A token at the edge may be in or out, by the order in which fp32 probabilities are summed; at most one a row is.
    different = found != expected
    assert different.sum(-1).max() <= 1
    edge = scores.softmax(-1).masked_fill(~expected.isfinite(), 0.0).sum(-1)
    assert (edge[different.any(-1)] - top_p).abs().max() < 1e-5 if different.any() else True
    assert own.rows == len(scores) if vocabulary <= 64 else own.rows <= 4


def test_each_row_is_as_alone():
    torch.manual_seed(1)
    scores = torch.tensor([0.01, 1.0, 8.0])[:, None] * torch.randn(3, 3000)
    process = TopP(0.8, TopPLogitsWarper(0.8))
    together = process(torch.empty(3, 0), scores)
    for row in range(3):
        assert torch.equal(process(torch.empty(1, 0), scores[row : row + 1])[0], together[row])
