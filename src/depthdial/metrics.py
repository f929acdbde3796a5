"""The direction of a metric, higher or lower is better, by its name.

One registry for every reader of a direction: oracles, controllers, route search, figures and tables. A name is looked up
exactly, then by its words, so that `val_cross_entropy` and `rouge_l_f1` are known as well. A name that says nothing, or two
opposite things, is never guessed at.
"""

from __future__ import annotations

import re
from functools import lru_cache

from depthdial.errors import InputError

# What this package measures itself.
MEASURED = (
    *("rouge_1", "rouge_2", "rouge_l", "nll", "answer_nll", "kl", "agreement"),
    *("cosine_final", "cosine_pre_norm", "cosine_intermediate"),
)
# Words and phrases that say a direction wherever they stand in a name.
_HIGHER = """
    rouge_1 rouge_2 rouge_l agreement cosine_final cosine_pre_norm cosine_intermediate
    rouge rouge1 rouge2 rouge3 rougel rougelsum accuracy acc exact_match em f1 precision recall
    bleu sacrebleu bleu1 bleu2 bleu3 bleu4 gleu meteor chrf bertscore bleurt comet squad
    auc auroc auprc ndcg mrr hits iou jaccard overlap coverage faithfulness groundedness relevance
    pass success win_rate winrate hit_rate correct correctness helpfulness coherence fluency
    truthfulness factuality edit_similarity match
    cosine cosine_similarity similarity correlation pearson spearman kendall mcc kappa r2
    reward utility quality likelihood log_likelihood loglikelihood logprob log_prob elo
    per_sec per_second throughput speedup tps
"""
_LOWER = """
    nll answer_nll kl neg_log_likelihood negative_log_likelihood kld divergence js jsd loss perplexity ppl
    cross_entropy crossentropy xent ce bits_per_byte bits_per_char bits_per_token bpb bpc
    edit_distance cosine_distance levenshtein hamming distance dissimilarity regret
    mse rmse mae mape brier ece error err wer cer ter mer
    toxicity toxic hallucination violation failure repetition
    sec second ms millisecond us latency runtime time bytes byte mb gb memory flop energy joule
"""
DIRECTIONS = {**dict.fromkeys(_HIGHER.split(), True), **dict.fromkeys(_LOWER.split(), False)}
# These say something only where no other word does: `toxicity_score` is low for a good answer, `score` alone is high.
_WEAK = frozenset({"score", "rating", "points"})
# They turn a direction round or take a difference, whose good side cannot be known from its name.
_TURNING = {
    *("neg", "negative", "minus", "inverse", "inverted", "inv", "non", "not", "no", "un", "anti", "missing", "gain"),
    *("delta", "diff", "difference", "drop", "gap", "change", "reduction", "degradation", "increase", "decrease"),
    "improvement",
}
_LONGEST = max(name.count("_") for name in DIRECTIONS) + 1


def _singular(word: str) -> str:
    if word in DIRECTIONS:
        return word
    return next((one for one in (word[:-1], word[:-2]) if one in DIRECTIONS or one in _WEAK), word)


@lru_cache(maxsize=1024)
def direction_of(name: str) -> bool | None:
    """Whether higher is better, by a name or the words in it; None if it does not say, or says both.

    >>> direction_of("val_cross_entropy")
    False
    >>> direction_of("vibes") is None
    True
    """
    words = re.findall(r"[a-z]+[0-9]*|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower())
    words = [_singular(word) for word in words]
    if (joined := "_".join(words)) in DIRECTIONS:
        return DIRECTIONS[joined]
    if words[:1] == ["1"]:  # 1-wer
        return None
    found, at = set(), 0
    while at < len(words):
        phrases = ("_".join(words[at : at + n]) for n in range(_LONGEST, 0, -1) if at + n <= len(words))
        phrase = next((phrase for phrase in phrases if phrase in DIRECTIONS), None)
        if phrase is not None:
            found.add(DIRECTIONS[phrase])
        elif words[at] in _TURNING:
            return None
        at += phrase.count("_") + 1 if phrase else 1
    if len(found) == 1:
        return found.pop()
    return True if not found and _WEAK.intersection(words) else None


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
    found = direction_of(metric)
    if found is None:
        raise InputError(
            f"The name of the metric {metric!r} does not say whether high or low values are good: "
            "give higher_is_better=True or False (on the command line --higher-is-better or --lower-is-better)."
        )
    return found
