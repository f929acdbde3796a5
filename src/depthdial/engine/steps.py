"""What happens to each row at each step of transformers' generate: its logits, its draw, and whether its answer ends.

Each row is treated as if it were alone, on its own tokens without padding, so that an answer does not depend on its
neighbours. Chance is counted and not drawn in turn: a row's numbers follow from the seed and the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from depthdial.engine.decode import DecodingPolicy, cut_at_end, draw_tokens
from depthdial.engine.options import Options
from depthdial.engine.processors import Processor, Row, processors_of, reads_tokens

FinishReason = Literal["eos", "length", "stop"]
_AS_THEY_ARE = DecodingPolicy(temperature=1.0)  # temperature and nucleus are processors already


def draws(seed: int, prompt_ids: Sequence[int], repeat: int, n_tokens: int) -> np.ndarray:
    """(n_tokens,) numbers in [0, 1) for the answer to a prompt that stood `repeat` times before in the list."""
    key = f"{seed}\n{repeat}\n{','.join(map(str, prompt_ids))}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")).random(n_tokens)


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
    """One row: what is done to it, and how many tokens it had when it ended."""

    padding: int
    processors: list[Processor]
    stops: StopStrings | None
    is_over: bool = False
    stopped_at: int | None = field(default=None)


class Steps:
    """A batch's rows, as a logits processor (`choose`) and a stopping criterion (`end`)."""

    def __init__(
        self,
        options: Options,
        tokenizer: Any,
        rows: Sequence[Row],
        width: int,
        *,
        processors: Sequence[Any] = (),
        criteria: Sequence[Any] = (),
        chance: torch.Tensor | None = None,
    ) -> None:
        self._ends, self._width, self._criteria, self._chance = options.ends, width, criteria, chance
        self._is_rowwise = reads_tokens(options, processors)
        self._answers = [
            _Answer(
                width - row.prompt_tokens,
                processors_of(options, processors, row) if self._is_rowwise or i == 0 else [],
                StopStrings(tokenizer, options.stop_strings, row.prompt[0].tolist()) if options.stop_strings else None,
            )
            for i, row in enumerate(rows)
        ]
        self.changes_logits = chance is not None or self._is_rowwise or bool(self._answers[0].processors)
        self.watches_rows = self._is_rowwise or bool(criteria) or bool(options.stop_strings)

    def choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._is_rowwise:
            scores = torch.cat([self._chosen(row, input_ids, scores) for row in range(len(self._answers))])
        else:
            for process in self._answers[0].processors:
                scores = process(input_ids, scores)
        if self._chance is None:
            return scores
        drawn = draw_tokens(scores, self._chance[:, input_ids.shape[1] - self._width], _AS_THEY_ARE)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

    def _chosen(self, row: int, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answer, own = self._answers[row], scores[row : row + 1]
        if not answer.is_over:
            for process in answer.processors:
                own = process(input_ids[row : row + 1, answer.padding :], own)
        return own

    def end(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, answer in enumerate(self._answers):
            if not answer.is_over:
                self._look(
                    answer, input_ids[row : row + 1, answer.padding :], input_ids[row, self._width :].tolist(), scores
                )
        return torch.tensor([answer.is_over for answer in self._answers], device=input_ids.device)

    def _look(self, answer: _Answer, ids: torch.Tensor, new: list[int], scores: Any) -> None:
        answer.is_over = new[-1] in self._ends
        has_text = answer.stops is not None and answer.stops.ends(new)
        if has_text or any(bool(torch.as_tensor(own(ids, scores)).all()) for own in self._criteria):
            answer.is_over, answer.stopped_at = True, len(new)

    def cut(self, row: int, tokens: list[int]) -> tuple[list[int], FinishReason]:
        """The tokens of a row's answer, out of those that its batch was decoded for, and why it ends there."""
        kept, reason = cut_at_end(tokens, self._ends)
        at = self._answers[row].stopped_at
        if at is None or at > len(kept) or (at == len(kept) and reason == "eos"):
            return kept, reason
        return kept[:at], "stop"
