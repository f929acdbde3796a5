"""Nucleus sampling without sorting a whole vocabulary, which takes a CPU longer than the layers of a small model do."""

from __future__ import annotations

from typing import Any

import torch

# How many of the likeliest tokens are looked at, one after the other, before all are sorted.
_CANDIDATES = (64, 1024)
# Sums of fp32 probabilities differ by their order: nearer to top_p than this, more tokens are looked at.
_MARGIN = 1e-5


class TopP:
    """transformers' TopPLogitsWarper: it keeps the fewest likeliest tokens that together hold a probability.

    Args:
        top_p: that probability.
        by_sorting: transformers' own, for what the likeliest tokens do not decide and for other devices, which sort fast.
    """

    def __init__(self, top_p: float, by_sorting: Any) -> None:
        self._top_p, self._by_sorting = top_p, by_sorting

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(n_rows, vocabulary) logits, -inf for tokens that are not kept; `ids` are not read."""
        if scores.device.type != "cpu":
            return self._by_sorting(ids, scores)
        found = torch.full_like(scores, -torch.inf)
        probabilities = scores.softmax(-1)
        rows = torch.arange(len(scores))
        for n in _CANDIDATES:
            if n >= scores.shape[-1] or not len(rows):
                break
            values, tokens = scores[rows].topk(n, dim=-1)
            own = probabilities[rows].gather(-1, tokens)
            mass = own.cumsum(-1)
            is_out = mass - own >= self._top_p
            is_out[:, 0] = False
            is_decided = mass[:, -1] > self._top_p + _MARGIN
            kept = rows[is_decided]
            found[kept] = found[kept].scatter(-1, tokens[is_decided], values.masked_fill(is_out, -torch.inf)[is_decided])
            rows = rows[~is_decided]
        if len(rows):
            found[rows] = self._by_sorting(ids, scores[rows])
        return found
