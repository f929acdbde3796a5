"""A batch of answers in the making, in rows: one step of all that are not over, and the logits behind each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from depthdial.engine.batch import RowBatch
from depthdial.engine.prefill import Prefill
from depthdial.routes import Route


class RowStream:
    """A batch of answers in the making, of which rows that are over are run no longer; and the logits of the last step."""

    def __init__(self, model: Any, routes: Sequence[Route], prefilled: Prefill, max_new_tokens: int) -> None:
        self._batch = RowBatch(model, len(routes))
        self._batch.join(prefilled, routes, keys=range(len(routes)), new_tokens=max_new_tokens - 1)
        self._logits = prefilled.logits[:, -1].to(torch.float32, copy=True)  # a prefill may be decoded several times

    @property
    def n_bytes(self) -> int:
        """Of keys and values."""
        return self._batch.n_bytes

    def last_logits(self) -> torch.Tensor:
        """(n_rows, vocabulary) behind the last token of each row, to be changed at will."""
        return self._logits  # which nobody reads again

    def step(self, tokens: torch.Tensor, is_over: torch.Tensor) -> None:
        """Run the (n_rows,) tokens of the rows that are not over."""
        self._leave(is_over)
        self._run(tokens)

    def _leave(self, is_over: torch.Tensor) -> None:
        over = is_over.tolist()
        self._batch.leave([row for row in self._rows if over[row]])

    @property
    def _rows(self) -> list[int]:
        """Those that are not over."""
        keys: Any = self._batch.keys
        return list(keys)

    def _run(self, tokens: torch.Tensor) -> None:
        rows = self._rows
        if rows == list(range(len(tokens))):
            self._logits = self._batch.step(tokens).float()
        else:  # those of rows that are over stay what they were, for nobody to read
            self._logits[rows] = self._batch.step(tokens[rows]).float()
