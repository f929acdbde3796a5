"""Scores of a generated answer against its reference: ROUGE as in the paper (arXiv 2410.20022, section 5).

Google's `rouge-score` sees the letters a to z and digits alone: of "Привет" nothing, of "Привет GPT-4" the name alone.
A score from what is left would say that every answer is as bad as every other, or reward the few Latin words in it. So:

- A reference of which less than half of the letters and digits are Latin letters or ASCII digits, or in which the tokenizer
  finds no word at all, has no ROUGE: None. Accents are no matter: text in a Latin script is scored as it always was.
- Whatever the answer, the reference decides: an answer without a word in common with it scores 0, as it should.
- `tokenizer="unicode"` scores any script. Words are those of Unicode's standard (UAX #29): between spaces and punctuation,
  and character by character in scripts that put none between words (Chinese, hiragana, Thai, Lao, Khmer, Burmese).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from depthdial.checks import choice
from depthdial.errors import InputError

ROUGE_METRICS = ("rouge_1", "rouge_2", "rouge_l")
FORCED_METRICS = ("nll", "kl", "agreement")
METRICS = (*ROUGE_METRICS, *FORCED_METRICS)
# Without one of these a row has no score.
REFERENCE_METRICS = (*ROUGE_METRICS, "nll")
ROUGE_TOKENIZERS = ("default", "unicode")
_LEAST_SEEN = 0.5


def rouge(
    answer: str, reference: str | Sequence[str], *, use_stemmer: bool = False, tokenizer: str = "default"
) -> dict[str, float | None]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, in [0, 1], by Google's `rouge-score`; the paper does not stem.

    Of several references the best score counts, for each of the three; those that the tokenizer cannot see are left out, and
    without any other all three are None.

    Args:
        tokenizer: `default` (rouge-score's own: a to z and digits) or `unicode`.

    Raises:
        InputError: for an unknown tokenizer.

    Example:
        >>> rouge("the cat sat", "the cat")["rouge_l"]
        0.8
        >>> rouge("你好", "你好")["rouge_l"], rouge("你好", "你好", tokenizer="unicode")["rouge_l"]
        (None, 1.0)
    """
    references = [reference] if isinstance(reference, str) else list(reference)
    seen = [text for text in references if is_seen(text, tokenizer)]
    if not seen:
        return dict.fromkeys(ROUGE_METRICS)
    scores = _scorer(use_stemmer, tokenizer).score_multi(seen, answer)
    return {
        "rouge_1": float(scores["rouge1"].fmeasure),
        "rouge_2": float(scores["rouge2"].fmeasure),
        "rouge_l": float(scores["rougeL"].fmeasure),
    }


def is_seen(text: str, tokenizer: str = "default") -> bool:
    """Whether a ROUGE tokenizer sees enough of a reference for a score to mean something."""
    choice("ROUGE tokenizer", tokenizer, ROUGE_TOKENIZERS)
    if text.isascii() or tokenizer == "unicode":
        return any(letter.isalnum() for letter in text)
    letters = [letter for letter in text if letter.isalnum()]
    read = [letter for letter in letters if letter.isascii() or unicodedata.name(letter, "").startswith("LATIN ")]
    return any(letter.isascii() for letter in read) and len(read) >= _LEAST_SEEN * len(letters)


def require_rouge(examples: Iterable[Any], instead: str) -> None:
    """Refuse rows that ROUGE with its default tokenizer has no score for.

    Args:
        examples: of a task.
        instead: what else to do, as it ends the sentence ("predict agreement").

    Raises:
        InputError: if an example has no reference, or none that the tokenizer sees.
    """
    for example in examples:
        if not example.references:
            raise InputError(f"Row {example.id!r} has no reference, and ROUGE-L needs one: give it one, or {instead}.")
        if not any(map(is_seen, example.references)):
            raise InputError(
                f"Row {example.id!r} has a reference in a script that ROUGE-L cannot see: leave the row out, or {instead}."
            )


class _UnicodeTokenizer:
    """Words as UAX #29 bounds them, in lower case, as `rouge_score.tokenizers.Tokenizer` gives them."""

    def __init__(self, use_stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer() if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        import regex

        parts = regex.split(r"(?V1w)\b", unicodedata.normalize("NFC", text).lower())
        words = [part for part in parts if any(letter.isalnum() for letter in part)]
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 else word for word in words]  # as the default one does


@cache
def _scorer(use_stemmer: bool, tokenizer: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    own = _UnicodeTokenizer(use_stemmer) if tokenizer == "unicode" else None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer, tokenizer=own)
