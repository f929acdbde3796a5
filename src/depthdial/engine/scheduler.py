"""The scheduler: which answers have rows, when prompts run and when rows step. One thread calls it.

Answers wait in the order in which they came. Whoever gets a row has its prompt run, long ones in parts between steps,
and then steps with the others until its last token. Between two steps answers join and leave.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.answers import Answer, choose
from depthdial.engine.batch import in_rows
from depthdial.engine.drafted import DraftedGroup, why_not_drafted
from depthdial.engine.groups import EagerGroup, Group, RowGroup
from depthdial.engine.handles import failure, is_out_of_memory, no_memory
from depthdial.engine.loop import guided
from depthdial.engine.prefill import Prefill
from depthdial.engine.prompts import Placed, PromptPass, Settling, shares_pass
from depthdial.engine.schedules import Chooser
from depthdial.engine.session import Session
from depthdial.engine.speculation import OTHERS, Speculation
from depthdial.engine.tallies import Gauges, Tallies
from depthdial.engine.waiting import Queue
from depthdial.routes import Route
from depthdial.views.tokens.depth import TokenDepth

_PROBES = 4  # passes of fewer layers, where their time has to be known
_DECIDE_ON = 8  # times the rows that may run: as many requests are looked at to decide about the schedule


@dataclass(frozen=True)
class Limits:
    """What an engine holds at most.

    Attributes:
        max_rows: rows that decode at once.
        max_tokens: tokens of keys and values, those that answers may still get among them; None for any.
        chunk_tokens: tokens of prompts that run between two steps, so long do rows that decode wait at most.
    """

    max_rows: int
    max_tokens: int | None
    chunk_tokens: int


class Scheduler:
    """Runs answers on a session, a tick at a time: a part of a prompt's pass, or a step."""

    def __init__(self, session: Session, limits: Limits, chooser: Chooser, tallies: Tallies) -> None:
        self._session, self._limits, self._chooser, self._tallies = session, limits, chooser, tallies
        self._max_rows = limits.max_rows
        self._waiting = Queue()
        self._running: dict[int, Answer] = {}  # whoever has a row, or is on the way to one
        self._admitted: list[Answer] = []  # those whose prompts have not begun to run
        self._pass: PromptPass | None = None
        self._groups: dict[Any, Group] = {}
        self._settling: list[Settling] = []
        self._alone: set[int] = set()  # whose prompts run alone, after an error in a pass of several
        self._tokens_since_step = self._closed_freed_bytes = 0
        self._changes = 0  # arrivals and ends since the schedule was decided about
        self._numbers = itertools.count()
        self.gauges = Gauges()
        self.has_cancelled = False
        self._ended: list[Answer] = []  # whose callers are yet to be told
        self._measure()

    @property
    def is_idle(self) -> bool:
        return not (len(self._waiting) or self._running)

    @property
    def has_room(self) -> bool:
        """Whether nobody waits, and half of the rows or more are free."""
        return not len(self._waiting) and 2 * len(self._running) <= self._max_rows

    def add(self, answers: Sequence[Answer]) -> None:
        """Put answers at the end of the queue."""
        for answer in answers:
            answer.number = next(self._numbers)
        self._waiting.add(answers)
        self._changes += len(answers)

    def tick(self) -> None:
        """One part of a prompt's pass, or one step of all rows; answers that are over leave."""
        started = time.perf_counter()
        if self.has_cancelled:
            self._drop_cancelled()
        self._admit()
        if self._pass is None and self._admitted:
            self._begin(self._next_prompts())
        if self._pass is not None and not self._step_is_due(self._pass):
            self._prefill(self._pass)
        elif self._groups:
            self._step()
        self._tallies.add(busy_sec=time.perf_counter() - started)
        self._tell()

    def everyone(self) -> list[Answer]:
        return [*self._running.values(), *self._waiting]

    def fail_all(self, error: Exception) -> None:
        """After an error of the scheduler's own: nobody waits for ever."""
        everyone = self.everyone()
        self._waiting.clear()
        self._groups.clear()
        self._admitted, self._pass = [], None
        for answer in everyone:
            answer.error = error
        self._retire(everyone)
        self._tell()

    # Who gets a row.

    def _admit(self) -> None:
        if not len(self._waiting):
            return
        self._decide()
        rows = sum(answer.n_rows for answer in self._running.values())
        tokens = sum(answer.need_tokens for answer in self._running.values())
        while len(self._waiting):
            answer = self._waiting.next(self._chooser.now.schedule)
            rows, tokens = rows + answer.n_rows, tokens + answer.need_tokens
            limit = self._limits.max_tokens
            if self._running and (rows > self._max_rows or (limit is not None and tokens > limit)):
                return
            self._waiting.remove(answer)
            self._running[answer.number] = answer
            answer.admitted_sec = answer.admitted_sec or time.perf_counter()
            self._admitted.append(answer)

    def _decide(self) -> None:
        if self._changes < max(self._limits.max_rows // 4, 1) and self._groups:
            return
        self._changes = 0
        everyone = itertools.chain(self._running.values(), self._waiting)
        known = (answer.route for answer in everyone if isinstance(answer.route, Route))
        self._chooser.decide(list(itertools.islice(known, _DECIDE_ON * self._limits.max_rows)), self._max_rows)

    # Prompts.

    def _next_prompts(self) -> list[Answer]:
        """The first that was admitted, and others of about its length, as many as run in one pass."""
        first = self._admitted[0]
        chosen, prompts, width = [first], {first.ids}, len(first.ids)
        if not self._session.rotates_by_length and first.number not in self._alone:
            near = sorted(self._admitted[1:], key=lambda answer: abs(len(answer.ids) - width))
            for answer in near:
                if self._chooser.wants_probe and len(chosen) > len(near) // 2:
                    break  # the others join after a step of fewer rows
                if answer.number in self._alone or not shares_pass(first, answer):
                    continue
                tokens = len(prompts | {answer.ids}) * max(width, len(answer.ids))
                if answer.ids not in prompts and tokens > self._limits.chunk_tokens:
                    break
                prompts.add(answer.ids)
                width = max(width, len(answer.ids))
                chosen.append(answer)
        self._admitted = [answer for answer in self._admitted if answer not in chosen]
        return chosen

    def _begin(self, answers: list[Answer]) -> None:
        try:
            self._pass = PromptPass(self._session, answers)
        except Exception as error:  # a depth's, which makes a pass of its own
            self._could_not_start(answers, error)

    def _step_is_due(self, prompts: PromptPass) -> bool:
        """Whether rows that decode have waited for as many tokens of prompts as they may."""
        if self._groups and self._chooser.wants_probe:
            return True
        if not self._groups or not self._tokens_since_step:
            return False
        chunk, coming = self._limits.chunk_tokens, prompts.remaining_tokens * prompts.n_prompts
        # Where all rows are new, prompts that need one pass each run first, so that they all step together.
        is_waited_for = coming > chunk or any(a.n_fed for group in self._groups.values() for a in group.answers)
        return is_waited_for and self._tokens_since_step + min(coming, chunk) > chunk

    def _prefill(self, prompts: PromptPass) -> None:
        n_before = prompts.remaining_tokens
        try:
            placed = prompts.advance(self._limits.chunk_tokens)
        except Exception as error:
            self._pass = None
            self._settling += prompts.settling  # a depth may have decided already
            self._could_not_start(prompts.answers, error)
            return
        n_tokens = sum(len(answer.ids) for answer in prompts.answers)
        self._tokens_since_step += (n_before - prompts.remaining_tokens) * prompts.n_prompts or n_tokens
        if placed is None:
            return
        self._pass = None
        self._tallies.add(prompt_tokens=n_tokens)
        self._settling += prompts.settling
        for one in placed:
            try:
                self._start(one)
            except Exception as error:
                stepping = {answer.number for group in self._groups.values() for answer in group.answers}
                lost = [a for a in one.answers if a.number in self._running and a.number not in stepping]
                self._could_not_start(lost, error)

    def _start(self, placed: Placed) -> None:
        """The first tokens of answers, which come out of their prompts' pass, and rows for those that go on."""
        for is_guided in (False, True):
            answers = [answer for answer in placed.answers if answer.is_guided is is_guided]
            guide = self._guide(placed, answers) if is_guided and answers else None
            new = [answer for answer in answers if not answer.tokens and not answer.is_over]
            if new:
                logits = placed.logits(new)
                if guide is not None:
                    scales = logits.new_tensor([answer.options.guidance_scale for answer in new])
                    rows = [answers.index(answer) for answer in new]
                    logits = guided(scales[:, None], logits, guide.logits[rows, -1].float())
                self._tallies.add(new_tokens=choose(new, logits))
            going = [answer for answer in answers if not answer.is_over]
            self._retire([answer for answer in answers if answer.is_over])
            if going:
                self._join(placed, going, None if guide is None else _rows_of(guide, answers, going))

    def _guide(self, placed: Placed, answers: Sequence[Answer]) -> Prefill:
        return placed.session.prefill_ids([answer.ids[-1:] for answer in answers], placed.prefilled.route)

    def _join(self, placed: Placed, answers: Sequence[Answer], guide: Prefill | None) -> None:
        session = placed.session
        by_group: dict[Any, list[Answer]] = {}
        for answer in answers:
            if isinstance(answer.route, TokenDepth):
                answer.route = answer.route.for_batch([(answer.ids, answer.asked.repeat)])
                key: Any = answer.number
            elif session.rotates_by_length or not in_rows(session.model):
                key = answer.number if session.rotates_by_length else (min(a.number for a in answers), answer.route)
            else:
                key = id(session.model), answer.route if self._chooser.now.schedule == "by-route" else None
            by_group.setdefault(key, []).append(answer)
        for key, members in by_group.items():
            members, prefilled = placed.of(members)
            own = None if guide is None else _rows_of(guide, answers, members)
            route = members[0].route
            drafting = members[0].drafting
            is_alone = len(members) == len(self._running) and not len(self._waiting)
            # With nobody beside them: rows that others join step by step are plain ones.
            why_off = why_not_drafted(members, drafting, session) if drafting is not None and is_alone else OTHERS
            if drafting is not None and why_off is None:
                self._groups[members[0].number] = DraftedGroup(session, members, prefilled, drafting)
                continue
            for one in members:
                one.speculation = None if one.drafting is None else Speculation(one.drafting.name, why_off=why_off)
            if isinstance(route, TokenDepth) or session.rotates_by_length or not in_rows(session.model):
                assert route is not None
                self._groups[key] = EagerGroup(session, route, members, prefilled, own)
                continue
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = RowGroup(session, sum(a.n_rows for a in self._running.values()))
            assert isinstance(group, RowGroup)
            group.join(members, prefilled, own)

    # Steps.

    def _step(self) -> None:
        self._tokens_since_step = 0
        for key, group in list(self._groups.items()):
            work = group.work
            try:
                self._probe(group)
                started = time.perf_counter()
                n_tokens = group.step()
            except Exception as error:
                self._close(key)
                if is_out_of_memory(error):
                    self._make_room(group.answers, error)
                else:
                    self._fail(group.answers, error)
                continue
            if work is not None and self._chooser.measured is not None:
                self._chooser.measured.observe(work, time.perf_counter() - started)
            self._tallies.stepped(work)
            self._tallies.add(new_tokens=n_tokens)
            self._leave(key, [answer for answer in group.answers if answer.is_over])

    def _probe(self, group: Group) -> None:
        measured = self._chooser.measured
        if measured is None or not self._chooser.wants_probe or not isinstance(group, RowGroup):
            return
        self._chooser.wants_probe = False
        for n in range(_PROBES):
            started = time.perf_counter()
            work = group.probe()
            if work is not None:
                self._tallies.add(layer_calls_run=work.layers, row_layers_run=work.row_layers)
                if n:  # the first comes upon cold caches
                    measured.observe(work, time.perf_counter() - started)

    # Ends.

    def _leave(self, key: Any, answers: Sequence[Answer]) -> None:
        if answers:
            self._groups[key].leave(answers)
            self._retire(answers)
        if not self._groups[key].answers:
            self._close(key)

    def _close(self, key: Any) -> None:
        self._closed_freed_bytes += self._groups.pop(key).freed_bytes

    def _retire(self, answers: Sequence[Answer]) -> None:
        """Count answers that are over, which have no rows any more."""
        for answer in answers:
            self._running.pop(answer.number, None)
            self._alone.discard(answer.number)
            if answer.reason is not None:
                self._max_rows = min(self._max_rows + 1, self._limits.max_rows)
        if answers:
            self._changes += len(answers)
            self._ended += answers
            self._settling = [one for one in self._settling if not one.settle_if_over()]

    def _tell(self) -> None:
        """Tell callers what has ended, once everything else is counted."""
        self._measure()
        ended, self._ended = self._ended, []
        for answer in ended:
            handle = answer.handle
            try:
                if answer.error is None and answer.reason is not None:
                    self._tallies.ended(answer)
                    handle.finish(answer.place, answer.generation(), lambda: self._tallies.add(finished=1))
            except Exception as error:  # a tokenizer's
                answer.error = error
            if answer.error is not None:
                handle.fail(failure(answer.error, len(answer.tokens)), lambda: self._tallies.add(failed=1))
                self.has_cancelled = True  # of the other answers to its prompt

    def _drop_cancelled(self) -> None:
        self.has_cancelled = False
        gone = [answer for answer in self.everyone() if answer.handle.done]
        self._waiting.drop_done()
        self._admitted = [answer for answer in self._admitted if not answer.handle.done]
        if self._pass is not None and all(answer.handle.done for answer in self._pass.answers):
            self._pass = None
        for key in list(self._groups):
            over = [answer for answer in self._groups[key].answers if answer.handle.done]
            if over:
                self._groups[key].leave(over)
            if not self._groups[key].answers:
                self._close(key)
        self._retire(gone)

    def _fail(self, answers: Sequence[Answer], error: Exception) -> None:
        for answer in answers:
            answer.error = error
        self._retire(answers)

    def _could_not_start(self, answers: Sequence[Answer], error: Exception) -> None:
        answers = [answer for answer in answers if not answer.handle.done]
        if is_out_of_memory(error):
            self._make_room(answers, error)
        elif len(answers) > 1:  # an error of one of them is not the others'
            self._alone |= {answer.number for answer in answers}
            for answer in answers:
                answer.starts_again()
            self._admitted = [*answers, *self._admitted]
        else:
            self._fail(answers, error)

    def _make_room(self, answers: Sequence[Answer], error: Exception) -> None:
        """After memory ran out: half as many rows as there were, and those that it ran out for wait for another turn."""
        rows = sum(answer.n_rows for answer in self._running.values())
        if len(self._running) <= 1:
            for answer in answers:
                answer.error = no_memory(answer.ids, answer.limit, error)
            self._retire(answers)
            return
        if self._session.device.type == "cuda":
            torch.cuda.empty_cache()
        self._max_rows = max(rows // 2, 1)
        answers, self._admitted = [*answers, *self._admitted], []
        for answer in answers:
            answer.starts_again()
            self._running.pop(answer.number, None)
        self._waiting.put_back(answers)

    def _measure(self) -> None:
        n_waiting, choice = len(self._waiting), self._chooser.now
        kv_bytes = sum(group.n_bytes for group in self._groups.values())
        freed_bytes = self._closed_freed_bytes + sum(group.freed_bytes for group in self._groups.values())
        self.gauges = Gauges(
            n_waiting, len(self._running), self._max_rows, kv_bytes, freed_bytes, choice.schedule, choice.why
        )


def _rows_of(prefilled: Prefill, answers: Sequence[Answer], some: Sequence[Answer]) -> Prefill:
    rows = [answers.index(answer) for answer in some]
    return prefilled.select(torch.tensor(rows, device=prefilled.input_ids.device))
