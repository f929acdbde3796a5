"""Prompts on their way into rows: which of them share a pass, passes in parts, and the route of each afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from depthdial.engine.answers import Answer
from depthdial.engine.depth import Assignment, Batch, Depth, RouteDepth, TokenwiseDepth
from depthdial.engine.prefill import Prefill, PrefillInParts
from depthdial.engine.session import Session
from depthdial.engine.speculation import NOTHING, Speculation
from depthdial.routes import Route


@dataclass
class Settling:
    """Answers that one `assign` decided about: told together what they took, once all are over."""

    assignment: Assignment
    answers: Sequence[Answer]

    def settle_if_over(self) -> bool:
        """Whether all are over, and the depth has been told."""
        if not all(answer.is_over for answer in self.answers):
            return False
        assert self.assignment.settle is not None
        self.assignment.settle(np.array([max(len(answer.tokens) - 1, 0) for answer in self.answers]))
        return True


@dataclass(eq=False)
class Placed:
    """Answers whose prompts have run in one pass, ready to decode on one session.

    Attributes:
        rows: of `prefilled`, one for each answer; an answer's prompt may be another's too.
    """

    session: Session
    prefilled: Prefill
    answers: list[Answer] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def of(self, answers: Sequence[Answer]) -> tuple[list[Answer], Prefill]:
        """Some of them with their prompts."""
        kept = [(answer, row) for answer, row in zip(self.answers, self.rows, strict=True) if answer in set(answers)]
        rows = torch.tensor([row for _, row in kept], device=self.prefilled.input_ids.device)
        return [answer for answer, _ in kept], self.prefilled.select(rows)

    def logits(self, answers: Sequence[Answer]) -> torch.Tensor:
        """(n_answers, vocabulary) logits of the first token."""
        row_of = dict(zip(self.answers, self.rows, strict=True))
        return self.prefilled.logits[[row_of[answer] for answer in answers], -1].float()


class PromptPass:
    """One pass over the prompts of some answers, in parts where it is long.

    Args:
        answers: that `shares_pass` says may stand together.
    """

    def __init__(self, session: Session, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.settling: list[Settling] = []
        self._session = session
        self._parts: PrefillInParts | None = None
        unique = list(dict.fromkeys(answer.ids for answer in answers))
        self._place = {ids: i for i, ids in enumerate(unique)}
        first = answers[0]
        if _passes_first(first):
            route = first.route if first.about.prompt_depth == "route" and isinstance(first.route, Route) else None
            self._parts = session.prefill_in_parts(unique, route)
        else:
            self._parts = first.depth.prompts_in_parts(session, unique, first.about)

    @property
    def n_prompts(self) -> int:
        return len(self._place)

    @property
    def remaining_tokens(self) -> int:
        """Columns that have not run; 0 of a pass that the depth makes itself."""
        return 0 if self._parts is None else self._parts.remaining_tokens

    def advance(self, most_tokens: int) -> list[Placed] | None:
        """Run at most so many tokens of it, padding counted; where the answers go on, once it is over."""
        if self._parts is None:
            return self._assigned(None)
        chunks = [a.options.prefill_chunk_size for a in self.answers if a.options.prefill_chunk_size is not None]
        ready = self._parts.advance(min([max(most_tokens // self.n_prompts, 1), *chunks]))
        if ready is None:
            return None
        return self._assigned(ready)

    def _assigned(self, ready: Prefill | None) -> list[Placed]:
        by_depth: dict[Any, tuple[Depth, list[Answer]]] = {}
        for answer in self.answers:
            by_depth.setdefault((id(answer.depth), answer.decided is None), (answer.depth, []))[1].append(answer)
        placed: dict[tuple[int, int], Placed] = {}
        for depth, answers in by_depth.values():
            ids, keys = [answer.ids for answer in answers], [answer.key for answer in answers]
            rows = [self._place[one] for one in ids]
            if ready is not None and isinstance(depth, RouteDepth):
                # Every route goes on with the same pass: nothing is taken apart.
                assignment = Assignment(tuple(map(depth.route.for_sequence, keys)), ready)
                source: Any = partial(_given, ready, rows)
            else:
                full = None if ready is None else ready.select(torch.tensor(rows, device=ready.input_ids.device))
                is_own = not _passes_first(answers[0])
                batch = Batch(ids, keys, own=full) if is_own else Batch(ids, keys, full)
                assignment = _decided_before(answers, batch) or depth.assign(self._session, batch, answers[0].about)
                source = partial(_own, assignment, self._session, batch)
            if assignment.settle is not None:
                self.settling.append(Settling(assignment, answers))
                if ready is not None:
                    _keep(assignment, answers)
            made: dict[Any, Prefill] = {}
            for member, (answer, route) in enumerate(zip(answers, assignment.routes, strict=True)):
                answer.route = route
                answer.drafting = drafting = assignment.drafting
                if drafting is not None:
                    answer.speculation = Speculation(drafting.name, why_off=drafting.why_off or NOTHING)
                answer.why = assignment.reasons[member] if assignment.reasons else None
                session = assignment.running(self._session, route)
                prefilled, row = source(made, assignment.routes, member)
                answer.prefill_sec = prefilled.prefill_sec
                one = placed.setdefault((id(session.model), id(prefilled)), Placed(session, prefilled))
                one.answers.append(answer)
                one.rows.append(row)
        return list(placed.values())


def _given(ready: Prefill, rows: Sequence[int], made: Any, routes: Any, member: int) -> tuple[Prefill, int]:
    return ready, rows[member]


def _own(
    assignment: Assignment, session: Session, batch: Batch, made: dict[Any, Prefill], routes: Sequence[Any], member: int
) -> tuple[Prefill, int]:
    """The prompt's pass that the depth made, or a pass through the answer's own route with those of the same one."""
    if assignment.full is not None:
        return assignment.full, member
    route = routes[member]
    members = [i for i, other in enumerate(routes) if other == route]
    if route not in made:
        made[route] = assignment.prefilled(assignment.running(session, route), batch, members, route)
    return made[route], members.index(member)


def _keep(assignment: Assignment, answers: Sequence[Answer]) -> None:
    """For an answer that starts again: it goes on as it began, and a running budget is not charged for it twice."""
    for member, (answer, route) in enumerate(zip(answers, assignment.routes, strict=True)):
        own = assignment.reasons[member : member + 1]
        answer.decided = replace(assignment, routes=(route,), reasons=own, full=None, settle=None)


def _decided_before(answers: Sequence[Answer], batch: Batch) -> Assignment | None:
    """What was decided about answers that start again, on their new pass; None for new ones."""
    kept = [answer.decided for answer in answers if answer.decided is not None]
    if not kept:
        return None
    return replace(
        kept[0],
        routes=tuple(route for one in kept for route in one.routes),
        reasons=tuple(reason for one in kept for reason in one.reasons),
        full=(batch.own or batch.full) if answers[0].about.prompt_depth == "full" else None,
    )


def shares_pass(one: Answer, other: Answer) -> bool:
    """Whether the prompts of two answers may run in one pass."""
    if not (_passes_first(one) and _passes_first(other)):
        return one.depth is other.depth and one.about == other.about
    if one.about.prompt_depth != other.about.prompt_depth:
        return False
    return one.about.prompt_depth == "full" or one.route == other.route


def _passes_first(answer: Answer) -> bool:
    """Whether the prompt runs before the depth is asked; other depths make a pass of their own, such as a controller's."""
    return type(answer.depth) in (RouteDepth, TokenwiseDepth)
