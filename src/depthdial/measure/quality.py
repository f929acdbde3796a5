"""Scores of a generated answer against its reference: ROUGE as in the paper (arXiv 2410.20022, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

ROUGE_METRICS = ("rouge_1", "rouge_2", "rouge_l")
FORCED_METRICS = ("nll", "kl", "agreement")
# Of a generated answer under the depth that wrote it; measured only where it is asked for.
ANSWER_METRICS = ("answer_nll",)
METRICS = (*ROUGE_METRICS, *FORCED_METRICS)


def rouge(answer: str, reference: str | Sequence[str], *, use_stemmer: bool = False) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, in [0, 1], by Google's `rouge-score`; the paper does not stem.

    Of several references the best score counts, for each of the three.
    """
    references = [reference] if isinstance(reference, str) else list(reference)
    scores = _scorer(use_stemmer).score_multi(references, answer)
    return {
        "rouge_1": float(scores["rouge1"].fmeasure),
        "rouge_2": float(scores["rouge2"].fmeasure),
        "rouge_l": float(scores["rougeL"].fmeasure),
    }


@cache
def _scorer(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer)
