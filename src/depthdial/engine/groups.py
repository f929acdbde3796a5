"""Answers that step together: rows of a `RowBatch`, or a batch on transformers' own cache for what cannot be run in rows.

A group runs the next token of each of its answers, and hands every answer the logits behind it to choose from. Where tokens
are drafted (`drafted`), a step may give several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from depthdial.engine.answers import Answer, choose
from depthdial.engine.batch import RowBatch
from depthdial.engine.loop import guided
from depthdial.engine.prefill import Prefill, continue_on, continuing
from depthdial.engine.session import Session
from depthdial.routes import Route
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth


@dataclass(frozen=True)
class Work:
    """What one step of a group runs.

    Attributes:
        rows: how many, those of guidance among them.
        layers: decoder layers that are called.
        row_layers: rows of each of them, added up.
    """

    rows: int
    layers: int
    row_layers: int


class Group(Protocol):
    """What the scheduler knows of answers that step together."""

    @property
    def answers(self) -> Sequence[Answer]:
        """In order of arrival."""
        ...

    @property
    def work(self) -> Work | None:
        """Of the next step; None where it is decided on the way."""
        ...

    @property
    def n_bytes(self) -> int:
        """Of keys and values."""
        ...

    @property
    def freed_bytes(self) -> int:
        """Of the prompts' keys and values, of layers that no row runs."""
        ...

    def step(self) -> int:
        """Run the next token of every answer, and choose the one behind it; how many tokens were chosen."""
        ...

    def leave(self, answers: Collection[Answer]) -> None:
        """Free the rows of some answers."""


class RowGroup:
    """Rows of one session's model, of any routes.

    Args:
        capacity_rows: rows to make room for at once.
    """

    def __init__(self, session: Session, capacity_rows: int) -> None:
        self._device = session.device
        self._batch = RowBatch(session.model, capacity_rows)
        self._answers: dict[int, Answer] = {}
        self._work: Work | None = None

    @property
    def answers(self) -> Sequence[Answer]:
        return tuple(self._answers.values())

    @property
    def n_bytes(self) -> int:
        return self._batch.n_bytes

    @property
    def freed_bytes(self) -> int:
        return self._batch.freed_bytes

    @property
    def work(self) -> Work:
        if self._work is None:
            rows = self._rows_by_layer()
            self._work = Work(len(self._batch), len(rows), rows.total())
        return self._work

    def _rows_by_layer(self) -> Counter[int]:
        rows: Counter[int] = Counter()
        for answer in self._answers.values():
            assert isinstance(answer.route, Route)
            rows.update(dict.fromkeys(answer.route.layers, answer.n_rows))
        return rows

    def _next_inputs(self) -> torch.Tensor:
        keys = cast(Sequence[tuple[int, bool]], self._batch.keys)
        return torch.tensor([self._answers[number].next_input for number, _ in keys], device=self._device)

    def join(self, answers: Sequence[Answer], prefilled: Prefill, guide: Prefill | None) -> None:
        """Take in answers whose prompts have run, each on its own route.

        Args:
            guide: the last token alone of the guided ones among them, in order.
        """
        routes = [answer.route for answer in answers if isinstance(answer.route, Route)]
        guided = [answer for answer in answers if answer.is_guided]
        self._work = None
        try:
            room = max(answer.limit for answer in answers)
            self._batch.join(prefilled, routes, [(answer.number, False) for answer in answers], room)
            if guide is not None:
                own = [answer.route for answer in guided if isinstance(answer.route, Route)]
                self._batch.join(guide, own, [(answer.number, True) for answer in guided], room)
        except BaseException:
            self._batch.leave([(answer.number, is_guide) for answer in answers for is_guide in (False, True)])
            raise
        self._answers |= {answer.number: answer for answer in answers}

    def step(self) -> int:
        keys = cast(Sequence[tuple[int, bool]], self._batch.keys)
        logits = self._batch.step(self._next_inputs()).float()
        for answer in self._answers.values():
            answer.n_fed += 1
            answer.batch_size = max(answer.batch_size, len(keys))
        places = [row for row, (_, is_guide) in enumerate(keys) if not is_guide]
        answers = [self._answers[keys[row][0]] for row in places]
        guides = {number: row for row, (number, is_guide) in enumerate(keys) if is_guide}
        if guides:
            own = [places[i] for i, answer in enumerate(answers) if answer.is_guided]
            others = [guides[keys[row][0]] for row in own]
            logits[own] = _guided([answer for answer in answers if answer.is_guided], logits[own], logits[others])
        wanting = [i for i, answer in enumerate(answers) if answer.wants_token]
        if len(wanting) < len(keys):
            logits = logits[[places[i] for i in wanting]]
        return choose([answers[i] for i in wanting], logits)

    def probe(self) -> Work | None:
        """Run every second of the layers that are called on the next tokens, for the time that it takes; no answer changes.

        What it writes lies behind the rows' lengths, and the next step writes it anew. None where there is one layer.
        """
        rows = self._rows_by_layer()
        some = sorted(rows)[::2]
        if len(rows) < 2:
            return None
        self._batch.run(self._next_inputs()[:, None], layers=frozenset(some))
        return Work(len(self._batch), len(some), sum(rows[layer] for layer in some))

    def leave(self, answers: Collection[Answer]) -> None:
        self._batch.leave([(answer.number, is_guide) for answer in answers for is_guide in (False, True)])
        for answer in answers:
            self._answers.pop(answer.number, None)
        self._work = None


class EagerGroup:
    """Answers on one route, or a single one at a token-wise depth, on transformers' own cache; none joins later."""

    freed_bytes = 0

    def __init__(
        self, session: Session, depth: Running, answers: Sequence[Answer], prefilled: Prefill, guide: Prefill | None
    ) -> None:
        self._answers = list(answers)
        self._depth = depth
        self._streams = [_Stream(session.model, depth, prefilled)]
        if guide is not None:
            self._streams.append(_Stream(session.model, depth, guide))

    @property
    def answers(self) -> Sequence[Answer]:
        return tuple(self._answers)

    @property
    def n_bytes(self) -> int:
        return sum(stream.n_bytes for stream in self._streams)

    @property
    def work(self) -> Work | None:
        if isinstance(self._depth, TokenDepth):
            return None
        rows = len(self._answers) * len(self._streams)
        return Work(rows, len(self._depth), rows * len(self._depth))

    def step(self) -> int:
        tokens = [answer.next_input for answer in self._answers]
        found = [stream.step(tokens) for stream in self._streams]
        for answer in self._answers:
            answer.n_fed += 1
            answer.batch_size = max(answer.batch_size, len(tokens))
        logits = found[0] if len(found) == 1 else _guided(self._answers, *found)
        wanting = [row for row, answer in enumerate(self._answers) if answer.wants_token]
        return choose([self._answers[row] for row in wanting], logits[wanting])

    def leave(self, answers: Collection[Answer]) -> None:
        kept = [row for row, answer in enumerate(self._answers) if answer not in answers]
        if kept and len(kept) < len(self._answers):
            for stream in self._streams:
                stream.keep(kept)
        self._answers = [self._answers[row] for row in kept]


class _Stream:
    def __init__(self, model: Any, depth: Running, prefilled: Prefill) -> None:
        self._running, self._cache = continuing(model, depth, prefilled)
        self._mask = prefilled.attention_mask

    @property
    def n_bytes(self) -> int:
        tensors = [getattr(layer, name, None) for layer in self._cache.layers for name in ("keys", "values")]
        return sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        column = torch.tensor(tokens, device=self._mask.device)[:, None]
        return continue_on(self._running, self._cache, column, self._mask).logits[:, -1].float()

    def keep(self, rows: Sequence[int]) -> None:
        which = torch.tensor(rows, device=self._mask.device)
        self._cache.batch_select_indices(which)
        self._mask = self._mask[which]


def _guided(answers: Sequence[Answer], logits: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    scales = [answer.options.guidance_scale for answer in answers]
    return guided(torch.tensor(scales, device=logits.device)[:, None], logits, unconditional)
