"""Answers at full depth whose tokens are drafted and checked: a step brings each of them one token or several.

They begin together, so that what was learned of drafts and what they cost tells of this very batch, and none joins later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from depthdial.engine.answers import Answer
from depthdial.engine.prefill import Prefill
from depthdial.engine.sampler import Sampler
from depthdial.engine.session import Session
from depthdial.engine.speculation import GUIDED, NOTHING, OTHERS, PROCESSED, Drafting
from depthdial.engine.speculative_stream import SpeculativeStream


class DraftedGroup:
    """A batch of answers at full depth with drafts.

    Args:
        answers: each with its first token, for which `why_not_drafted` has no reason.
        drafting: what drafts.
    """

    work = None
    freed_bytes = 0

    def __init__(self, session: Session, answers: Sequence[Answer], prefilled: Prefill, drafting: Drafting) -> None:
        self._answers = list(answers)
        self._over = [False] * len(answers)
        samplers = [answer.prepare_sampler(prefilled.logits.shape[-1], session.device) for answer in answers]
        self._sampler = Sampler(samplers, n_logprobs=answers[0].options.logprobs)
        self._device, self._drafting = session.device, drafting
        self._sampler.ended(self._last_tokens())
        most = max(answer.limit for answer in answers)
        self._stream = SpeculativeStream(session.model, prefilled, most, self._sampler, drafting)

    @property
    def answers(self) -> Sequence[Answer]:
        return tuple(answer for answer, is_over in zip(self._answers, self._over, strict=True) if not is_over)

    @property
    def n_bytes(self) -> int:
        return self._stream.n_bytes

    def step(self) -> int:
        self._stream.step(self._last_tokens(), torch.tensor(self._over, device=self._device))
        self._sampler.ended(self._sampler.next_tokens(self._stream.last_logits()))
        n_new, n_rows = 0, len(self.answers)
        for row, (answer, is_over) in enumerate(zip(self._answers, self._over, strict=True)):
            if is_over:
                continue
            n_before = len(answer.tokens)
            told = self._sampler.logprobs(row)  # of all but the first token, which came out of the prompt
            for place, token in enumerate(self._sampler.answer(row)[0][n_before:], n_before):
                answer.take(token, None if told is None else told[place - 1])
            answer.n_fed = len(answer.tokens) - 1
            if answer.is_over:
                answer.speculation = self._drafting.told(row)
            answer.batch_size = max(answer.batch_size, n_rows)
            n_new += len(answer.tokens) - n_before
        return n_new

    def leave(self, answers: Collection[Answer]) -> None:
        for row, answer in enumerate(self._answers):
            self._over[row] |= answer in answers

    def _last_tokens(self) -> torch.Tensor:
        return torch.tensor([answer.tokens[-1] for answer in self._answers], device=self._device)


def why_not_drafted(answers: Sequence[Answer], drafting: Drafting, session: Session) -> str | None:
    """Why answers that step together are not drafted; None where they may be.

    They are to be alike in what is told of them, and to have nothing of the caller's own to run, whose error would be all
    answers' error here. An answer that lost its row goes on without drafts.
    """
    for answer in answers:
        is_alike = answer.drafting is drafting and answer.options.logprobs == answers[0].options.logprobs
        if not is_alike or len(answer.tokens) != 1:
            return OTHERS
        if answer.is_guided:
            return GUIDED
        if answer.processors or "watermarking_config" in answer.options.values:
            return PROCESSED
        if answer.criteria:
            return "stopping criteria of the caller's run by themselves"
    is_fit = drafting.fits(session.model, answers[0].route, max(answer.limit for answer in answers))
    return None if is_fit else drafting.why_off or NOTHING
