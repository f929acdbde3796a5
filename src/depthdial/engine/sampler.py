"""The next token of each row of a batch that begins and ends together: what the decode loop asks.

It remembers the answers of its rows, each of which is a request of its own (see `row_sampler`): measurements make rows from
counted draws under a policy, `generate` from its options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from depthdial.engine.logprobs import TokenLogprob, read_logprobs
from depthdial.engine.row_sampler import RowSampler, distributions, draft_tokens, next_tokens, verify_tokens
from depthdial.engine.sampling import DecodingPolicy, DrawTable, FinishReason

_OVER = RowSampler()  # of a row whose answer is over: what it chooses is not used


class Sampler:
    """Chooses tokens for the rows of one batch, and tells which answers are over.

    Args:
        rows: of the batch, each without a token so far.
        n_logprobs: how many likeliest tokens are told beside each generated one; None for no log-probabilities.
    """

    def __init__(self, rows: Sequence[RowSampler], *, n_logprobs: int | None = None) -> None:
        self._rows, self._n_logprobs = list(rows), n_logprobs
        self._most: int | None = None  # tokens of any row's answer
        self._answers: list[list[int]] = [[] for _ in rows]
        self._reasons: list[FinishReason | None] = [None] * len(rows)
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in rows]
        self._replacing: dict[int, int] = {}  # what comes in place of rejected drafts, by row

    @classmethod
    def from_draws(
        cls, policy: DecodingPolicy, draws: torch.Tensor | None, ends: Sequence[int], n_rows: int, n_tokens: int
    ) -> Sampler:
        """For measurements: greedy, or one counted draw a token.

        Args:
            draws: (n_rows, at least n_tokens) numbers in [0, 1); not used by a greedy policy.

        Raises:
            ValueError: if a policy that draws has no draws of that shape.
        """
        if policy.is_greedy:
            return cls([RowSampler(ends)] * n_rows)
        if draws is None or draws.shape[0] != n_rows or draws.shape[1] < n_tokens:
            shape = None if draws is None else tuple(draws.shape)
            raise ValueError(f"draws have shape {shape} where a policy draws {n_rows} answers of {n_tokens} tokens.")
        return cls([RowSampler(ends, policy=policy, chance=DrawTable(row)) for row in draws.tolist()])

    def next_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """(n_rows,) tokens that follow, from the model's (n_rows, vocabulary) logits."""
        tokens = next_tokens(self._rows, self._answers, logits)
        for row, token in self._replacing.items():
            tokens[row] = token
        self._replacing = {}
        if self._n_logprobs is not None:
            for told, reason, one in zip(
                self._logprobs, self._reasons, read_logprobs(logits, tokens, self._n_logprobs), strict=True
            ):
                if reason is None:
                    told.append(one)
        return tokens

    def limit(self, n_tokens: int) -> None:
        """Have no answer be longer than this, whatever the rows' own limits are."""
        self._most = n_tokens

    def ended(self, tokens: torch.Tensor) -> list[bool]:
        """Which answers are over, with the tokens that `next_tokens` chose or before."""
        for row, token in enumerate(tokens.tolist()):
            if self._reasons[row] is None:
                self._append(row, token)
        return [reason is not None for reason in self._reasons]

    def room(self, row: int) -> int | None:
        """How many more tokens a row's answer may have; None for any number."""
        limits = [limit for limit in (self._rows[row].limit, self._most) if limit is not None]
        return min(limits) - len(self._answers[row]) if limits else None

    def tokens_behind(self, rows: Sequence[int], drafts: Sequence[Sequence[int]], logits: torch.Tensor) -> torch.Tensor:
        """The token of each of some rows that follows its answer and a draft, chosen as `next_tokens` would there.

        A row may stand there several times, with drafts of unlike lengths.

        Args:
            drafts: tokens behind each of these rows' answers.
            logits: (n, vocabulary).

        Returns:
            (n,) token ids.
        """
        return next_tokens([self._rows[row] for row in rows], self._behind(rows, drafts), logits)

    def draft(
        self, rows: Sequence[int], drafts: Sequence[Sequence[int]], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `tokens_behind`, drawn by the draws of drafts; and the (n, vocabulary) probabilities that these came from."""
        return draft_tokens([self._rows[row] for row in rows], self._behind(rows, drafts), logits)

    def verify(
        self,
        rows: Sequence[int],
        drafts: Sequence[Sequence[int]],
        n_drafted: Sequence[int],
        logits: torch.Tensor,
        draft: torch.Tensor | None,
    ) -> list[int]:
        """How many drafted tokens each row keeps by rejection sampling; `next_tokens` then gives what replaces the next one.

        Args:
            drafts: k tokens behind each of these rows' answers, of which the row's first `n_drafted` count.
            logits: (n_rows, k + 1, vocabulary) of the model.
            draft: (n_rows, k, vocabulary) probabilities that they were drawn with; None for tokens that were not drawn.
        """
        samplers, k = [self._rows[row] for row in rows], len(drafts[0])
        behind = [one[:place] for one in drafts for place in range(k + 1)]
        several = [row for row in rows for _ in range(k + 1)]
        p = distributions([self._rows[row] for row in several], self._behind(several, behind), logits.flatten(0, 1))
        drafted = torch.tensor(drafts, device=logits.device)
        answers = [self._answers[row] for row in rows]
        found = verify_tokens(samplers, answers, drafted, p.unflatten(0, (len(rows), k + 1)), draft, n_drafted)
        n_accepted = found.n_accepted.tolist()
        for row, n, most, token in zip(rows, n_accepted, n_drafted, found.tokens.tolist(), strict=True):
            if n < most:
                self._replacing[row] = token
        return n_accepted

    def _behind(self, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[*self._answers[row], *draft] for row, draft in zip(rows, drafts, strict=True)]

    def accept(self, row: int, tokens: Sequence[int], logits: torch.Tensor) -> int:
        """Take drafted tokens that the model chooses too, up to one that ends the answer.

        Args:
            logits: (n_tokens, vocabulary) of the model.

        Returns:
            How many tokens were taken.
        """
        n_top = self._n_logprobs
        told = None if n_top is None else read_logprobs(logits, torch.tensor(tokens, device=logits.device), n_top)
        for n, token in enumerate(tokens):
            if self._reasons[row] is not None:
                return n
            if told is not None:
                self._logprobs[row].append(told[n])
            self._append(row, token)
        return len(tokens)

    def _append(self, row: int, token: int) -> None:
        self._answers[row].append(token)
        reason = self._rows[row].ended(self._answers[row])
        if reason is None and self.room(row) == 0:
            reason = "length"
        if reason is not None:
            self._reasons[row], self._rows[row] = reason, _OVER

    def columns(self, start: int, pad_token_id: int) -> Iterator[list[int]]:
        """The tokens of successive places in the answers: of each place that all rows have which are not over."""
        going = [len(answer) for answer, reason in zip(self._answers, self._reasons, strict=True) if reason is None]
        for place in range(start, min(going, default=max(map(len, self._answers)))):
            yield [answer[place] if place < len(answer) else pad_token_id for answer in self._answers]

    def padded(self, pad_token_id: int) -> list[list[int]]:
        """The tokens of each row, as many of each as the longest answer has."""
        width = max(map(len, self._answers))
        return [answer + [pad_token_id] * (width - len(answer)) for answer in self._answers]

    @property
    def is_greedy(self) -> bool:
        return all(row.is_greedy for row in self._rows)

    def answer(self, row: int) -> tuple[list[int], FinishReason]:
        """The tokens of a row's answer so far, and why it ends there: for its length, where nothing else ended it."""
        return self._answers[row], self._reasons[row] or "length"

    def logprobs(self, row: int) -> tuple[TokenLogprob, ...] | None:
        """One for each token of a row's answer; None where they were not asked for."""
        return None if self._n_logprobs is None else tuple(self._logprobs[row])
