"""The next token of each row of a batch: its logits, its draw, and whether its answer ends.

One sampler, made in two ways: from counted draws under a policy (measurements), or from the options of `generate`. Each row
is treated as if it were alone, on its own tokens without padding, so that an answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.options import Options
from depthdial.engine.processors import Processor, Row, processors_of, reads_tokens
from depthdial.engine.sampling import GREEDY, DecodingPolicy, FinishReason, cut_at_end, draw_tokens

_AS_THEY_ARE = DecodingPolicy(temperature=1.0)  # temperature and nucleus are processors already


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


@dataclass
class _Answer:
    """One row: what is done to its logits, what may end it besides an end token, and how many tokens it had then."""

    padding: int
    processors: list[Processor]
    stops: StopStrings | None
    is_over: bool = False
    stopped_at: int | None = None


class Sampler:
    """Chooses tokens for the rows of one batch, and tells which answers are over.

    Args:
        width: columns of the prompts, padding counted.
        ends: tokens that end an answer.
        policy: how a token is drawn from the logits.
        chance: (n_rows, at least as many as tokens may come) numbers in [0, 1); None for greedy answers.
        answers: the rows, where logits are processed or answers end otherwise too.
        is_rowwise: whether a processor reads the tokens of its row, and not the logits alone.
        criteria: the caller's stopping criteria, called with one row at a time.
    """

    def __init__(
        self,
        width: int,
        ends: Sequence[int],
        *,
        policy: DecodingPolicy = GREEDY,
        chance: torch.Tensor | None = None,
        answers: Sequence[_Answer] = (),
        is_rowwise: bool = False,
        criteria: Sequence[Any] = (),
    ) -> None:
        self._width, self._ends, self._policy, self._chance = width, tuple(ends), policy, chance
        self._answers, self._is_rowwise, self._criteria = answers, is_rowwise, criteria
        self._looks = any(answer.stops is not None for answer in answers) or bool(criteria)

    @classmethod
    def from_draws(
        cls, policy: DecodingPolicy, draws: torch.Tensor | None, ends: Sequence[int], prompts: torch.Tensor, n_tokens: int
    ) -> Sampler:
        """For measurements: greedy, or one counted draw a token.

        Args:
            draws: (n_sequences, at least n_tokens) numbers in [0, 1); not used by a greedy policy.
            prompts: (n_sequences, width) ids.

        Raises:
            ValueError: if a policy that draws has no draws of that shape.
        """
        n_rows, width = prompts.shape
        if policy.is_greedy:
            return cls(width, ends)
        if draws is None or draws.shape[0] != n_rows or draws.shape[1] < n_tokens:
            shape = None if draws is None else tuple(draws.shape)
            raise ValueError(f"draws have shape {shape} where a policy draws {n_rows} answers of {n_tokens} tokens.")
        return cls(width, ends, policy=policy, chance=draws.to(prompts.device))

    @classmethod
    def from_options(
        cls,
        options: Options,
        tokenizer: Any,
        rows: Sequence[Row],
        width: int,
        *,
        processors: Sequence[Any] = (),
        criteria: Sequence[Any] = (),
        chance: torch.Tensor | None = None,
    ) -> Sampler:
        """For `generate`: what its options, processors and criteria say, row by row.

        Raises:
            InputError: for a value that an option's processor does not take.
        """
        is_rowwise = reads_tokens(options, processors)
        answers = [
            _Answer(
                width - row.prompt_tokens,
                processors_of(options, processors, row) if is_rowwise or i == 0 else [],
                StopStrings(tokenizer, options.stop_strings, row.prompt[0].tolist()) if options.stop_strings else None,
            )
            for i, row in enumerate(rows)
        ]
        policy = GREEDY if chance is None else _AS_THEY_ARE
        return cls(
            width, options.ends, policy=policy, chance=chance, answers=answers, is_rowwise=is_rowwise, criteria=criteria
        )

    def next_tokens(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """(n_rows,) tokens that follow.

        Args:
            ids: (n_rows, width + tokens so far).
            logits: (n_rows, vocabulary), in fp32 and the sampler's own to change.
        """
        if self._is_rowwise:
            logits = torch.cat([self._processed(row, ids, logits) for row in range(len(self._answers))])
        elif self._answers:
            for process in self._answers[0].processors:
                logits = process(ids, logits)
        if self._chance is None:
            return logits.argmax(-1)
        return draw_tokens(logits, self._chance[:, ids.shape[1] - self._width], self._policy)

    def _processed(self, row: int, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        answer, own = self._answers[row], logits[row : row + 1]
        if not answer.is_over:
            for process in answer.processors:
                own = process(ids[row : row + 1, answer.padding :], own)
        return own

    def ended(self, ids: torch.Tensor) -> torch.Tensor:
        """(n_rows,) which answers the last column of `ids` ended, by an end token or otherwise."""
        last = ids[:, -1]
        over = torch.isin(last, torch.tensor(self._ends, device=ids.device)) if self._ends else torch.zeros_like(last).bool()
        if self._looks or self._is_rowwise:
            for row, is_end in enumerate(over.tolist()):
                over[row] = self._is_over(row, ids, is_end)
        return over

    def _is_over(self, row: int, ids: torch.Tensor, is_end: bool) -> bool:
        answer = self._answers[row]
        if answer.is_over:
            return True
        answer.is_over = is_end
        new = ids[row, self._width :].tolist()
        has_text = answer.stops is not None and answer.stops.ends(new)
        own = ids[row : row + 1, answer.padding :]
        if has_text or any(bool(torch.as_tensor(one(own, None)).all()) for one in self._criteria):
            answer.is_over, answer.stopped_at = True, len(new)
        return answer.is_over

    def cut(self, row: int, tokens: list[int]) -> tuple[list[int], FinishReason]:
        """The tokens of a row's answer, out of those that its batch was decoded for, and why it ends there."""
        kept, reason = cut_at_end(tokens, self._ends)
        at = self._answers[row].stopped_at if self._answers else None
        if at is None or at > len(kept) or (at == len(kept) and reason == "eos"):
            return kept, reason
        return kept[:at], "stop"
