"""Metrics by name: is higher or lower better, what they are called, their range, and whether they need references.

One registry for every reader of a metric's direction: oracles, controllers, route search, figures and tables. A name is
looked up exactly, then by its words, so that `val_cross_entropy` and `rouge_l_f1` are known as well. A name that says
nothing, or two opposite things, is never guessed at.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from depthdial.errors import InputError


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: as in the columns of rows; its words are joined by underscores.
        title: what people call it.
        higher_is_better: its direction.
        low, high: the ends of its range; infinite where it is open.
        needs_references: whether it compares with a reference answer; None where that depends on who computes it.
    """

    name: str
    title: str
    higher_is_better: bool
    low: float
    high: float
    needs_references: bool | None = None


MEASURED = (  # what this package measures itself
    Metric("rouge_1", "ROUGE-1", True, 0.0, 1.0, True),
    Metric("rouge_2", "ROUGE-2", True, 0.0, 1.0, True),
    Metric("rouge_l", "ROUGE-L", True, 0.0, 1.0, True),
    Metric("nll", "NLL", False, 0.0, math.inf, True),
    Metric("answer_nll", "NLL of the answer", False, 0.0, math.inf, False),
    Metric("kl", "KL", False, 0.0, math.inf, False),
    Metric("agreement", "agreement", True, 0.0, 1.0, False),
    Metric("cosine_final", "cosine, final states", True, -1.0, 1.0, False),
    Metric("cosine_pre_norm", "cosine before the norm", True, -1.0, 1.0, False),
    Metric("cosine_intermediate", "cosine, intermediate states", True, -1.0, 1.0, False),
)
# Words and phrases that say a direction wherever they stand in a name: (names, higher is better, low, high).
_FAMILIES = (
    ("rouge rouge1 rouge2 rouge3 rougel rougelsum accuracy acc exact_match em f1 precision recall", True, 0.0, 1.0),
    ("bleu sacrebleu bleu1 bleu2 bleu3 bleu4 gleu meteor chrf bertscore bleurt comet squad", True, 0.0, math.inf),
    ("auc auroc auprc ndcg mrr hits iou jaccard overlap coverage faithfulness groundedness relevance", True, 0.0, 1.0),
    ("pass success win_rate winrate hit_rate correct correctness helpfulness coherence fluency", True, 0.0, 1.0),
    ("truthfulness factuality edit_similarity match", True, 0.0, 1.0),
    ("cosine cosine_similarity similarity correlation pearson spearman kendall mcc kappa r2", True, -1.0, 1.0),
    ("reward utility quality likelihood log_likelihood loglikelihood logprob log_prob elo", True, -math.inf, math.inf),
    ("per_sec per_second throughput speedup tps", True, 0.0, math.inf),
    ("neg_log_likelihood negative_log_likelihood kld divergence js jsd loss perplexity ppl", False, 0.0, math.inf),
    ("cross_entropy crossentropy xent ce bits_per_byte bits_per_char bits_per_token bpb bpc", False, 0.0, math.inf),
    ("edit_distance cosine_distance levenshtein hamming distance dissimilarity regret", False, 0.0, math.inf),
    ("mse rmse mae mape brier ece error err wer cer ter mer", False, 0.0, math.inf),
    ("toxicity toxic hallucination violation failure repetition", False, 0.0, 1.0),
    ("sec second ms millisecond us latency runtime time bytes byte mb gb memory flop energy joule", False, 0.0, math.inf),
)
METRICS: dict[str, Metric] = {one.name: one for one in MEASURED}
for _names, _higher, _low, _high in _FAMILIES:
    for _name in _names.split():
        METRICS.setdefault(_name, Metric(_name, _name.replace("_", " "), _higher, _low, _high))
# These say something only where no other word does: `toxicity_score` is low for a good answer, `score` alone is high.
_WEAK = frozenset({"score", "rating", "points"})
# They turn a direction round or take a difference, whose good side cannot be known from its name.
_TURNING = {
    *("neg", "negative", "minus", "inverse", "inverted", "inv", "non", "not", "no", "un", "anti", "missing", "gain"),
    *("delta", "diff", "difference", "drop", "gap", "change", "reduction", "degradation", "increase", "decrease"),
    "improvement",
}
_LONGEST = max(name.count("_") for name in METRICS) + 1


def _singular(word: str) -> str:
    if word in METRICS:
        return word
    return next((one for one in (word[:-1], word[:-2]) if one in METRICS or one in _WEAK), word)


@lru_cache(maxsize=1024)
def find_metric(name: str) -> Metric | None:
    """The metric that a column's name contains, exactly or by its words; None if there is none, or several.

    >>> find_metric("val_cross_entropy").higher_is_better
    False
    >>> find_metric("vibes") is None
    True
    """
    words = re.findall(r"[a-z]+[0-9]*|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower())
    words = [_singular(word) for word in words]
    joined = "_".join(words)
    if joined in METRICS:
        return METRICS[joined]
    found, turned, at = [], words[:1] == ["1"], 0
    while at < len(words):
        phrases = ("_".join(words[at : at + n]) for n in range(_LONGEST, 0, -1) if at + n <= len(words))
        phrase = next((phrase for phrase in phrases if phrase in METRICS), None)
        turned |= phrase is None and words[at] in _TURNING
        found += [METRICS[phrase]] if phrase else []
        at += phrase.count("_") + 1 if phrase else 1
    if turned or len({one.higher_is_better for one in found}) > 1:
        return None
    if not found and _WEAK.intersection(words):
        return Metric(joined, joined.replace("_", " "), True, -math.inf, math.inf)
    return found[0] if found else None


def higher_is_better(metric: str, given: bool | None = None) -> bool:
    """Whether more of a metric is better: as `given`, else as its name says.

    >>> higher_is_better("rouge_l"), higher_is_better("kl"), higher_is_better("vibes", given=True)
    (True, False, True)

    Raises:
        InputError: the name does not say, and nothing is given.
    """
    if given is not None:
        if not isinstance(given, bool):
            raise InputError(f"The argument higher_is_better is {given!r}: give True or False.")
        return given
    found = find_metric(metric)
    if found is None:
        raise InputError(
            f"The name of the metric {metric!r} does not say whether high or low values are good: "
            "give higher_is_better=True or False (on the command line --higher-is-better or --lower-is-better)."
        )
    return found.higher_is_better
