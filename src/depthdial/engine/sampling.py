"""Sampling: policies, the token for a number in [0, 1), and the source of those numbers.

All chance comes in from outside, as one number in [0, 1) for each token, so that a draw depends neither on the batch that it
is made in nor on the state of a random generator. The numbers are a stream for each (seed, sequence, route, sample): a row
is the same in whichever batch, order or process it is made, and a killed run goes on with the rows that it would have had.
Streams share nothing with each other: an answer says nothing about how lucky another one was, which is what choosing on some
samples and scoring on others rests on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from depthdial.checks import choice, number, share, whole
from depthdial.errors import InputError
from depthdial.views.tokens.depth import Depth

FinishReason = Literal["eos", "length", "stop"]
Purpose = Literal["token", "draft", "accept", "residual", "bonus"]
PURPOSES: tuple[str, ...] = get_args(Purpose)

# Numbers that a stream is asked for at once; which ones they are does not depend on it.
_DRAWS_AHEAD = 64

# Below this, dividing by the temperature overflows; what it would choose is the greedy token anyway.
_LOWEST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class DecodingPolicy:
    """How the next token is chosen from the logits.

    Attributes:
        temperature: what logits are divided by before a token is drawn; 0 is greedy, the token with the largest logit.
        top_p: tokens are drawn from the fewest likeliest ones that together hold this probability, at the temperature
            (nucleus sampling, arXiv 1904.09751); 1 is all of them.

    Raises:
        InputError: for a number out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if number("temperature", self.temperature, 0) and self.temperature < _LOWEST_TEMPERATURE:
            raise InputError(
                f"Invalid temperature {self.temperature!r}: use at least {_LOWEST_TEMPERATURE} to draw answers, or 0 for "
                "greedy ones."
            )
        share("top_p", self.top_p)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


GREEDY = DecodingPolicy()


def draw_tokens(logits: torch.Tensor, draws: torch.Tensor, policy: DecodingPolicy) -> torch.Tensor:
    """One token for each row, by inverting the cumulative distribution at the row's draw.

    Args:
        logits: (n_sequences, vocabulary), of any float type.
        draws: (n_sequences,) numbers in [0, 1).

    Returns:
        (n_sequences,) token ids; never one of probability 0.

    Raises:
        InputError: if the logits are not finite.
    """
    probabilities, order = _kept(logits, policy)
    places = pick_tokens(probabilities, draws)
    return places if order is None else order.gather(-1, places[:, None])[:, 0]


def token_probabilities(logits: torch.Tensor, policy: DecodingPolicy) -> torch.Tensor:
    """What `draw_tokens` draws from: (n_sequences, vocabulary) probabilities; one-hot for a greedy policy.

    Raises:
        InputError: if the logits of a policy that draws are not finite.
    """
    if policy.is_greedy:
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities, order = _kept(logits, policy)
    if order is not None:
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, probabilities)
    return probabilities / probabilities.sum(-1, keepdim=True)


def _kept(logits: torch.Tensor, policy: DecodingPolicy) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities, 0 outside the nucleus, and which tokens they are of where they had to be sorted."""
    logits = logits.float()
    largest = logits.amax(-1, keepdim=True)  # not a number where any of them is not
    if not largest.isfinite().all():
        raise InputError("The model's logits are not finite, so no token can be drawn: try --dtype float32.")
    # At temperature 1 softmax does the same with fewer passes over the vocabulary.
    at_temperature = logits if policy.temperature == 1 else (logits - largest) / policy.temperature
    probabilities = at_temperature.softmax(-1)
    if policy.top_p >= 1:
        return probabilities, None
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill(before >= policy.top_p, 0.0), order


def pick_tokens(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token of each row at whose draw the cumulative distribution arrives.

    Args:
        weights: (n_sequences, vocabulary), from 0, with a sum above 0 in each row, which need not be 1.
        draws: (n_sequences,) numbers in [0, 1).

    Returns:
        (n_sequences,) token ids; never one of weight 0.

    Example:
        >>> import torch
        >>> pick_tokens(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([0.3]))
        tensor([2])
    """
    reached = weights.cumsum(-1)
    total = reached[:, -1:]
    wanted = draws[:, None].to(total) * total
    # Rounding may lift a draw to the total, behind the last token that can be drawn.
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, wanted, right=True)[:, 0]


def cut_at_end(tokens: list[int], eos_token_ids: Sequence[int]) -> tuple[list[int], FinishReason]:
    """The tokens up to and with the first end token, and why they end there."""
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1], "eos"
    return tokens, "length"


def sampling_policy(samples: int, temperature: float, top_p: float) -> DecodingPolicy:
    """The policy of a sweep with `samples` sampled answers of each (sequence, route); greedy for 0.

    Raises:
        InputError: for an invalid number of samples, a policy that cannot be sampled from, or one that no answer
            would be sampled with.
    """
    whole("samples", samples, 0)
    policy = DecodingPolicy(temperature, top_p)
    if samples == 0:
        if policy != DecodingPolicy(1.0, 1.0):
            raise InputError(
                "The options temperature and top_p are for sampled answers: say how many with samples, such as 8."
            )
        return GREEDY
    if policy.is_greedy:
        raise InputError(
            "Invalid temperature 0 for sampled answers: use one above 0, since at 0 all samples are the same greedy answer."
        )
    return policy


def sampled_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics of sampled answers: all but the one that is on the reference.

    Raises:
        InputError: for `nll`, which is teacher-forced on the reference, and so the same for every sample.
    """
    if "nll" in metrics:
        raise InputError("The metric nll does not depend on the answers that are sampled: sweep it without samples.")
    return tuple(metrics)


def sweep_draws(seed: object, answers: Sequence[tuple[str, int]], route: Depth, n_tokens: int) -> torch.Tensor:
    """(n_answers, n_tokens) numbers in [0, 1), one for each token that may be drawn.

    Args:
        seed: of the run.
        answers: (sequence id, number of the sample) of each row.
        route: the layers that run; its name does not matter.
        n_tokens: longest answer; a shorter table is the beginning of a longer one.
    """
    rows = [_stream(f"{seed}\n{route}\n{sample}\n{sequence_id}").random(n_tokens) for sequence_id, sample in answers]
    return torch.from_numpy(np.stack(rows))


class Chance:
    """The counted chance of one answer: a number for each purpose and position, whatever was asked for before.

    Plain decoding asks for `token` alone. Speculation draws a position's drafted token by `draft`, judges it by `accept`,
    and replaces one that is rejected by `residual`; a token behind drafts that were all accepted is a plain one, and `bonus`
    is another word for `token`, so that rounds without drafts give the plain answer. A position whose draft was dropped with
    a rejected one before it may be drafted again with the same numbers: nothing that is kept has depended on them.

    Args:
        key: what the streams are of.

    Example:
        >>> chance = Chance.of_request(seed=1, prompt_ids=[5, 7])
        >>> chance.draw("token", 3) == Chance.of_request(1, [5, 7]).draws("token", 0, 8)[3]
        True
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._streams: dict[str, tuple[np.random.Generator, list[float]]] = {}

    @classmethod
    def of_request(cls, seed: int, prompt_ids: Sequence[int], repeat: int = 0) -> Chance:
        """For the answer to a prompt that stood `repeat` times before among the requests."""
        return cls(f"{seed}\n{repeat}\n{','.join(map(str, prompt_ids))}")

    def draw(self, purpose: Purpose, position: int) -> float:
        """A number in [0, 1) for the token at a position of the answer, counted from 0."""
        return self.draws(purpose, position, 1)[0]

    def draws(self, purpose: Purpose, start: int, n_tokens: int) -> list[float]:
        """The numbers of successive positions."""
        choice("purpose of a draw", purpose, PURPOSES)
        name = "token" if purpose == "bonus" else purpose
        if name not in self._streams:
            self._streams[name] = _stream(self._key if name == "token" else f"{name}\n{self._key}"), []
        generator, known = self._streams[name]
        if (missing := start + n_tokens - len(known)) > 0:
            known += generator.random(max(missing, _DRAWS_AHEAD)).tolist()
        return known[start : start + n_tokens]


class DrawTable(Chance):
    """Numbers of a table in place of a stream, for plain decoding.

    Args:
        draws: one number in [0, 1) a position.
    """

    def __init__(self, draws: Sequence[float]) -> None:
        super().__init__("")
        self._table = list(draws)

    def draws(self, purpose: Purpose, start: int, n_tokens: int) -> list[float]:
        """The numbers of successive positions.

        Raises:
            ValueError: for a purpose of speculation, which a table has no numbers for.
        """
        if purpose not in ("token", "bonus"):
            raise ValueError(f"A table of draws has none to {purpose} tokens: use a Chance.")
        return self._table[start : start + n_tokens]


def _stream(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
