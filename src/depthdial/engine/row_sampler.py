"""The next token of one request, whatever batch it stands in: its logits, its chance, and whether its answer is over.

A `RowSampler` holds what a request asks for and none of its tokens: an answer so far always comes in from outside, so that
rows may join, leave, or be tried with drafted tokens. Functions over several rows do at once what rows have in common: one
argmax for all that are greedy, one draw for all of the same policy. What a row gets is the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from depthdial.engine.options import Options
from depthdial.engine.processors import Processor, Row, processors_of, reads_tokens
from depthdial.engine.rejection import Verified, verify_sampled
from depthdial.engine.sampling import (
    GREEDY,
    Chance,
    DecodingPolicy,
    FinishReason,
    Purpose,
    draw_tokens,
    pick_tokens,
    token_probabilities,
)

_AS_THEY_ARE = DecodingPolicy(temperature=1.0)  # temperature and nucleus are processors already

Answers = Sequence[Sequence[int]]


class StopStrings:
    """Looks for stop strings in one answer: as transformers does, also for one that began with the prompt's last words."""

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str], prompt_ids: Sequence[int]) -> None:
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        # A token is a character or more, but for parts of one.
        self._tail = list(prompt_ids[-4 * max(map(len, stop_strings)) :])
        self._before = len(self._text([]))

    def ends(self, answer: Sequence[int]) -> bool:
        text = self._text(answer)
        return any(text.find(stop, max(0, self._before - len(stop) + 1)) >= 0 for stop in self._stop_strings)

    def _text(self, answer: Sequence[int]) -> str:
        return str(self._tokenizer.decode([*self._tail, *answer], clean_up_tokenization_spaces=False))


class RowSampler:
    """Chooses the tokens of one request, and tells when its answer is over.

    Args:
        ends: tokens that end the answer.
        limit: most tokens of the answer; None for any.
        policy: how a token is drawn from the processed logits.
        chance: the request's own; not used by a greedy policy.
        prompt: (1, n_tokens) ids without padding, for processors and criteria that read tokens.
        processors: what is done to the logits first, in order.
        shared: rows of equal ones have equal processors, which read the logits alone; None for processors that read tokens.
        stops: stop strings to look for.
        criteria: the caller's stopping criteria.

    Example:
        >>> import torch
        >>> row = RowSampler(ends=(2,), limit=8)
        >>> row.next_token(torch.tensor([0.1, 0.7, 0.2]), [5])
        1
        >>> row.ended([5, 1]), row.ended([5, 2])
        (None, 'eos')
    """

    def __init__(
        self,
        ends: Sequence[int] = (),
        *,
        limit: int | None = None,
        policy: DecodingPolicy = GREEDY,
        chance: Chance | None = None,
        prompt: torch.Tensor | None = None,
        processors: Sequence[Processor] = (),
        shared: Hashable | None = (),
        stops: StopStrings | None = None,
        criteria: Sequence[Any] = (),
    ) -> None:
        if not policy.is_greedy and chance is None:
            raise ValueError("A policy that draws tokens needs a Chance.")
        self.limit = limit
        self._ends, self._policy, self._chance = frozenset(ends), policy, chance
        self._prompt, self._processors, self._shared = prompt, tuple(processors), shared
        self._stops, self._criteria = stops, tuple(criteria)

    @classmethod
    def from_options(
        cls,
        options: Options,
        tokenizer: Any,
        row: Row,
        *,
        chance: Chance | None = None,
        processors: Sequence[Any] = (),
        criteria: Sequence[Any] = (),
    ) -> RowSampler:
        """For a request with the options of `generate`.

        Args:
            chance: of a sampled answer; default: that of the options' seed for this prompt, the first time it is asked.
            processors, criteria: the caller's.

        Raises:
            InputError: for a value that an option's processor does not take.
        """
        prompt_ids = row.prompt[0].tolist()
        if options.seed is not None and chance is None:
            chance = Chance.of_request(options.seed, prompt_ids)
        return cls(
            row.ends,
            limit=row.limit,
            policy=GREEDY if options.seed is None else _AS_THEY_ARE,
            chance=chance,
            prompt=row.prompt,
            processors=processors_of(options, processors, row),
            shared=None if reads_tokens(options, processors) else _shared(options),
            stops=_stops(tokenizer, options, prompt_ids),
            criteria=criteria,
        )

    @property
    def is_greedy(self) -> bool:
        return self._policy.is_greedy

    @property
    def key(self) -> Hashable | None:
        """Rows of equal keys are processed, drawn and weighed together; None for a row that is so alone."""
        return None if self._shared is None else (self._policy, self._shared)

    def next_token(self, logits: torch.Tensor, answer: Sequence[int]) -> int:
        """The token that follows an answer so far.

        Args:
            logits: (vocabulary,) of the model, left as they are.
            answer: generated tokens so far.
        """
        return int(next_tokens([self], [answer], logits[None])[0])

    def distribution(self, logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        """(vocabulary,) probabilities that the next token is drawn with, after all processors; one-hot of a greedy row."""
        return distributions([self], [answer], logits[None])[0]

    def draws(self, purpose: Purpose, start: int, n_tokens: int) -> list[float]:
        """Numbers in [0, 1) for successive positions, counted from 0 in the answer; zeros of a greedy row."""
        return [0.0] * n_tokens if self._chance is None else self._chance.draws(purpose, start, n_tokens)

    def ended(self, answer: Sequence[int]) -> FinishReason | None:
        """Why the answer is over with its last token; None while it goes on."""
        if not answer:
            return None
        if answer[-1] in self._ends:
            return "eos"
        if self._stops is not None and self._stops.ends(answer):
            return "stop"
        if self._criteria:
            ids = self._ids(answer)
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self._criteria):
                return "stop"
        return "length" if self.limit is not None and len(answer) >= self.limit else None

    def cut(self, answer: Sequence[int], n_before: int) -> tuple[list[int], FinishReason | None]:
        """An answer that several tokens were added to, up to the first of them that ends it; and why it does.

        Args:
            n_before: how many tokens it had, and was not over.
        """
        for n in range(n_before + 1, len(answer) + 1):
            if (reason := self.ended(answer[:n])) is not None:
                return list(answer[:n]), reason
        return list(answer), None

    def processed(self, logits: torch.Tensor, answers: Answers) -> torch.Tensor:
        """Logits of this row behind some answers, or of several rows with its key: (n, vocabulary), after its processors."""
        if not self._processors:
            return logits
        if self._shared is None:
            return torch.cat([self._run(self._ids(one), logits[i : i + 1].clone()) for i, one in enumerate(answers)])
        return self._run(torch.empty(len(logits), 0, dtype=torch.long, device=logits.device), logits)

    def choose(self, logits: torch.Tensor, draws: Callable[[], torch.Tensor]) -> torch.Tensor:
        """(n,) tokens out of processed logits."""
        return logits.argmax(-1) if self.is_greedy else draw_tokens(logits, draws(), self._policy)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(n, vocabulary) probabilities of processed logits."""
        return token_probabilities(logits, self._policy)

    def _run(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        for process in self._processors:
            logits = process(ids, logits)
        return logits

    def _ids(self, answer: Sequence[int]) -> torch.Tensor:
        if self._prompt is None:
            raise ValueError("Processors and criteria that read tokens need the prompt.")
        return torch.cat([self._prompt, torch.tensor([list(answer)], dtype=torch.long, device=self._prompt.device)], dim=1)


def _stops(tokenizer: Any, options: Options, prompt_ids: Sequence[int]) -> StopStrings | None:
    if not options.stop_strings:
        return None
    return StopStrings(tokenizer, options.stop_strings, () if options.stop_in_answer else prompt_ids)


def next_tokens(samplers: Sequence[RowSampler], answers: Answers, logits: torch.Tensor) -> torch.Tensor:
    """The token that follows each row's answer.

    Args:
        samplers: one a row.
        answers: generated tokens so far, of each row.
        logits: (n_rows, vocabulary) of the model, left as they are.

    Returns:
        (n_rows,) token ids, where the logits are: nothing waits for the device.

    Example:
        >>> import torch
        >>> next_tokens([RowSampler(), RowSampler()], [[], [3]], torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [1, 0]
    """

    def choose(first: RowSampler, rows: list[int], own: torch.Tensor) -> torch.Tensor:
        processed = first.processed(own, [answers[row] for row in rows])
        return first.choose(processed, lambda: _draws("token", [samplers[i] for i in rows], [answers[i] for i in rows], own))

    return _by_key(samplers, logits, choose)


def distributions(samplers: Sequence[RowSampler], answers: Answers, logits: torch.Tensor) -> torch.Tensor:
    """The probabilities that each row's next token is drawn with, after all processors.

    A row may stand there several times, behind answers of unlike lengths, for several positions of drafts at once.

    Args:
        samplers, answers, logits: as in `next_tokens`.

    Returns:
        (n_rows, vocabulary) in fp32; one-hot of greedy rows.
    """
    return _by_key(
        samplers,
        logits,
        lambda first, rows, own: first.probabilities(first.processed(own, [answers[row] for row in rows])),
    )


def draft_tokens(
    samplers: Sequence[RowSampler], answers: Answers, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A drafted token for each row, and the probabilities q that it was drawn with.

    Args:
        samplers, answers: as in `next_tokens`; an answer counts the tokens drafted already.
        logits: (n_rows, vocabulary) of the draft.

    Returns:
        (n_rows,) token ids and (n_rows, vocabulary) probabilities.
    """
    q = distributions(samplers, answers, logits)
    return pick_tokens(q, _draws("draft", samplers, answers, logits)), q


def verify_tokens(
    samplers: Sequence[RowSampler],
    answers: Answers,
    drafted: torch.Tensor,
    target: torch.Tensor,
    draft: torch.Tensor | None,
    n_drafted: Sequence[int] | None = None,
) -> Verified:
    """Accept or replace drafted tokens by each request's own chance; see `rejection.verify_sampled`.

    Args:
        answers: generated tokens of each row, without the drafted ones.
        drafted: (n_rows, k) token ids.
        target: (n_rows, k + 1, vocabulary) probabilities p.
        draft: (n_rows, k, vocabulary) probabilities q; None for tokens that were not drawn.
        n_drafted: how many of them each row has drafted; default: k.
    """
    k = drafted.shape[1]
    numbers = [k] * len(samplers) if n_drafted is None else list(n_drafted)
    accept, replace = [], []
    for sampler, answer, n in zip(samplers, answers, numbers, strict=True):
        start, unused = len(answer), [0.0] * (k - n)
        accept.append(sampler.draws("accept", start, n) + unused)
        replace.append(sampler.draws("residual", start, n) + sampler.draws("bonus", start + n, 1) + unused)
    accept_draws, token_draws = (
        torch.tensor(table, dtype=torch.float64).reshape(len(samplers), -1).to(target.device, target.dtype)
        for table in (accept, replace)
    )
    return verify_sampled(target, draft, drafted, accept_draws, token_draws, torch.tensor(numbers, device=drafted.device))


def _by_key(
    samplers: Sequence[RowSampler],
    logits: torch.Tensor,
    run: Callable[[RowSampler, list[int], torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Rows of one key together, and each of the others alone; the results in the order of the rows."""
    logits = logits.float()
    groups: dict[Hashable, list[int]] = {}
    for row, sampler in enumerate(samplers):
        key = sampler.key
        groups.setdefault(("alone", id(sampler)) if key is None else key, []).append(row)
    if len(groups) == 1:
        return run(samplers[0], list(range(len(samplers))), logits)
    order = [row for rows in groups.values() for row in rows]
    found = torch.cat([run(samplers[rows[0]], rows, logits[rows]) for rows in groups.values()])
    back = torch.empty(len(order), dtype=torch.long)
    back[order] = torch.arange(len(order))
    return found[back.to(found.device)]


def _draws(purpose: Purpose, samplers: Sequence[RowSampler], answers: Answers, like: torch.Tensor) -> torch.Tensor:
    """(n_rows,) numbers of the rows, each for the token behind its answer."""
    numbers = [sampler.draws(purpose, len(answer), 1)[0] for sampler, answer in zip(samplers, answers, strict=True)]
    return torch.tensor(numbers, dtype=torch.float64).to(like.device, torch.float32)


def _shared(options: Options) -> Hashable:
    """What rows of equal settings have in common, also where each has its own Options; or else the Options themselves."""
    settings = tuple(sorted(options.values.items()))
    try:
        hash(settings)
    except TypeError:  # such as a list of tokens
        return _Itself(options)
    return settings


class _Itself:
    """A key that is equal for the same Options alone, which it keeps alive."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def __hash__(self) -> int:
        return id(self._options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other._options is self._options
