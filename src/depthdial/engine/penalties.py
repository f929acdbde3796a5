"""What OpenAI's interface does to logits and transformers' does not: penalties by counts, and a bias for each token."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from depthdial.checks import number
from depthdial.errors import InputError

PENALTIES = ("presence_penalty", "frequency_penalty", "logit_bias")
_MOST_PENALTY, _MOST_BIAS = 2, 100


def read_penalties(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change anything: penalties as numbers, `logit_bias` as pairs of token id and bias, by id.

    Raises:
        InputError: for a penalty outside of -2 to 2, a bias outside of -100 to 100, or what is no token id.

    Example:
        >>> read_penalties({"presence_penalty": 0, "frequency_penalty": 0.5, "logit_bias": {"7": -100}})
        {'frequency_penalty': 0.5, 'logit_bias': ((7, -100.0),)}
    """
    found: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty"):
        value = given.get(name)
        if value is not None and number(name, value, -_MOST_PENALTY, _MOST_PENALTY) != 0:
            found[name] = float(value)
    bias = given.get("logit_bias")
    if bias is not None and (pairs := _pairs(bias)):
        found["logit_bias"] = pairs
    return found


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(bias, Mapping):
        raise InputError(
            f"The option logit_bias is a dict of token ids to numbers, not {type(bias).__name__}: give such as {{50: -100}}."
        )
    return tuple(
        sorted(
            (_token(token), float(number(f"logit_bias of token {token}", value, -_MOST_BIAS, _MOST_BIAS)))
            for token, value in bias.items()
        )
    )


def _token(token: Any) -> int:
    """A token id, also as text: JSON has no other keys."""
    if isinstance(token, str) and re.fullmatch("[0-9]+", token):
        return int(token)
    if isinstance(token, bool) or not isinstance(token, numbers.Integral) or token < 0:
        raise InputError(
            f"The option logit_bias is by token ids, whole numbers from 0, not {token!r}: give such as {{50: -100}}."
        )
    return int(token)


class LogitBias:
    """Adds a number to the logits of some tokens.

    Args:
        pairs: token id and bias.
        vocabulary: size of the logits.

    Raises:
        InputError: for a token that the model does not have.
    """

    def __init__(self, pairs: Sequence[tuple[int, float]], vocabulary: int, device: Any) -> None:
        if pairs[-1][0] >= vocabulary:
            raise InputError(
                f"The option logit_bias names token {pairs[-1][0]}, and the model's end at {vocabulary - 1}: leave it out."
            )
        tokens, biases = zip(*pairs, strict=True)
        self._tokens = torch.tensor(tokens, device=device)
        self._biases = torch.tensor(biases, device=device)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(n_rows, vocabulary) logits; `ids` are not read."""
        return scores.index_add(-1, self._tokens, self._biases.to(scores).expand(len(scores), -1))


class CountPenalty:
    """Subtracts from a token's logit, as OpenAI does, for each time that the answer has it, and once if it has it at all.

    Args:
        prompt_tokens: where the answer begins; tokens of the prompt do not count.
        presence: subtracted once.
        frequency: subtracted each time.
    """

    def __init__(self, prompt_tokens: int, *, presence: float = 0.0, frequency: float = 0.0) -> None:
        self._prompt_tokens, self._presence, self._frequency = prompt_tokens, presence, frequency

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(1, vocabulary) logits of one row, from its (1, n_tokens) ids without padding."""
        tokens, counts = ids[0, self._prompt_tokens :].unique(return_counts=True)
        return scores.index_add(-1, tokens, -(self._presence + self._frequency * counts)[None].to(scores))
