"""Time budgets: where a training is by the clock, when a checkpoint is due, and when to stop so that the end fits too.

What a step decides follows from one reading of the clock, and on several processes from that of the first: all of them
then train with the same rate and stop at the same step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.train.depth.settings import FinetuneSettings

# Seconds since a command began.
Clock = Callable[[], float]
# Values of this process to those of the first one.
Agree = Callable[[Sequence[float]], Sequence[float]]


def since_now() -> Clock:
    """A clock that begins here.

    Example:
        >>> from depthdial.train.timing import since_now
        >>> 0 <= since_now()() < 60
        True
    """
    begun = time.monotonic()
    return lambda: time.monotonic() - begun


LEDGER_FILE = "minutes.json"
# The slowest of that many steps stands for the next one: batches of all lengths come by in them.
_RECENT_STEPS, _RECENT_SAVES = 32, 3
# What follows the last save: the record, the figure, the end of the process.
_TAIL_SEC = 3.0
# Without `save_minutes`: a tenth of the budget, at most a minute, and never more than a twentieth of the time on saving.
_SHARE_BETWEEN_SAVES, _MOST_BETWEEN_SAVES_SEC, _LEAST_SAVES_APART = 0.1, 60.0, 20.0
_LEDGER_EVERY_SEC = 1.0
_AFTER_FIRST = 0.5


class TimeBudget:
    """The clock of one run.

    Args:
        n_steps: optimizer steps of the schedule.
        max_sec: seconds that the command may take, with the stopped runs before it; infinite without a limit.
        save_sec: seconds between checkpoints; None for a number that follows from `max_sec`.
        clock: seconds since this command began.
        ledger: file that keeps the seconds used; None for a process that writes nothing.
        used: what the ledger of a stopped run says: its seconds, those of a step and of a checkpoint, and `has_learned`.

    Attributes:
        share: how far the training is by time, from 0 to 1.
        is_over: whether no further step fits.
        is_due: whether a checkpoint is to be written.
        has_learned: whether a step had a learning rate above 0, as the first one of a warm-up has not.
    """

    def __init__(
        self,
        n_steps: int,
        *,
        max_sec: float,
        save_sec: float | None,
        clock: Clock,
        ledger: Path | None = None,
        used: dict[str, float] | None = None,
    ) -> None:
        used = used or {}
        self.n_steps, self.max_sec = n_steps, max_sec
        self.share, self.is_over, self.is_due, self.has_learned = 0.0, False, False, bool(used.get("has_learned"))
        self._clock, self._ledger, self._asked_save_sec = clock, ledger, save_sec
        self._before_sec = used.get("used_sec", 0.0)
        self._steps = deque([used.get("step_sec", 0.0)], _RECENT_STEPS)
        self._saves = deque([used.get("save_sec", 0.0)], _RECENT_SAVES)
        self._begun, self._marked = (0.0, 0.0), 0.0
        self._next_save = self._next_note = -math.inf

    @classmethod
    def of(
        cls, settings: FinetuneSettings, n_steps: int, *, clock: Clock, ledger: Path, resumes: bool, writes: bool
    ) -> TimeBudget | None:
        """The budget that settings ask for, None if they ask for none.

        Args:
            ledger: file of the seconds used; read if the run `resumes` from a checkpoint, else they count from 0.
            writes: whether this process writes it.
        """
        if not settings.counts_minutes:
            return None
        used: dict[str, float] = {}
        if resumes:
            with suppress(InputError, TypeError, ValueError, AttributeError):
                used = {name: float(value) for name, value in read_json(ledger, "record of minutes").items()}
        return cls(
            n_steps,
            max_sec=math.inf if settings.max_minutes is None else settings.max_minutes * 60,
            save_sec=None if settings.save_minutes is None else settings.save_minutes * 60,
            clock=clock,
            ledger=ledger if writes else None,
            used=used,
        )

    @property
    def used_sec(self) -> float:
        """Seconds of this command so far, and of those before it whose checkpoint it goes on from."""
        return self._before_sec + self._clock()

    @property
    def step_sec(self) -> float:
        """What a step may take: the slowest of the last ones.

        The first one warms the machine up and is little of a measure: the next one may take half as long, so that a run is
        not given up for a slow beginning.
        """
        return max(self._steps) * (1.0 if self.has_learned else _AFTER_FIRST)

    @property
    def save_sec(self) -> float:
        """What a checkpoint may take."""
        return max(self._saves)

    @property
    def end_sec(self) -> float:
        """When the last step must have ended: what follows is saving, which takes up to twice what a checkpoint took."""
        return self.max_sec - _TAIL_SEC - 2 * self.save_sec

    @property
    def has_room(self) -> bool:
        """Whether a step fits now."""
        return self.used_sec + self.step_sec <= self.end_sec

    def position(self, step: int) -> int:
        """Where the learning rate's schedule is after `step` steps: the larger of the share of steps and that of time.

        A whole number of steps, so that a budget which never matters changes no bit.
        """
        return max(step, min(int(self.share * self.n_steps), self.n_steps - 1))

    def begin(self, share: float = 0.0, has_learned: bool = False) -> None:
        """Training begins here, or goes on from a checkpoint at a share of its way."""
        now = self.used_sec
        self._begun, self._marked, self.share, self.has_learned = (now, share), now, share, has_learned
        self._next_save = now + self._between_saves() if self.save_sec else now

    def end_step(self, rate: float, agree: Agree = list) -> None:
        """Take note of an optimizer step that used the learning rate `rate`, and decide what follows it."""
        now = self.used_sec
        if not self.has_learned:
            self._steps.clear()
        self._steps.append(now - self._marked)
        self._marked, self.has_learned = now, self.has_learned or rate > 0
        is_over = now + self.step_sec > self.end_sec
        fits = now + self.save_sec + self.step_sec <= self.end_sec
        told = agree([self._share_at(now), is_over, not is_over and fits and now >= self._next_save])
        self.share, self.is_over, self.is_due = told[0], bool(told[1]), bool(told[2])
        if now >= self._next_note:
            self.note()

    def end_save(self, agree: Agree = list) -> None:
        """Take note of a checkpoint, which was begun when the step ended."""
        now = self.used_sec
        if self.save_sec == 0:
            self._saves.clear()
        self._saves.append(now - self._marked)
        self._marked, self.is_due = now, False
        self._next_save = now + self._between_saves()
        self.is_over = bool(agree([now + self.step_sec > self.end_sec])[0])
        self.note()

    def note(self) -> None:
        """Write the seconds used where the next run finds them."""
        if self._ledger is not None:
            self._next_note = self.used_sec + _LEDGER_EVERY_SEC
            used = {"used_sec": self.used_sec, "step_sec": max(self._steps), "save_sec": self.save_sec}
            write_json(self._ledger, {**used, "has_learned": int(self.has_learned)})

    def too_short(self) -> InputError:
        """For a budget in which nothing was learned."""
        needed = (self.used_sec + 2 * self.step_sec + 2 * self.save_sec + _TAIL_SEC) / 60
        return InputError(
            f"A budget of max_minutes={self.max_sec / 60:g} is too short to learn from one step: {self.used_sec / 60:.2g} "
            f"minutes are used, and the end of the run takes {(self.max_sec - self.end_sec) / 60:.2g}: give at least "
            f"{math.ceil(needed * 15) / 10:g}."
        )

    def _share_at(self, now: float) -> float:
        since, share = self._begun
        span = self.end_sec - since
        passed = min(1.0, max(0.0, (now - since) / span)) if span > 0 else 1.0
        return max(self.share, share + (1 - share) * passed)

    def _between_saves(self) -> float:
        if self._asked_save_sec is not None:
            return self._asked_save_sec
        usual = min(_SHARE_BETWEEN_SAVES * self.max_sec, _MOST_BETWEEN_SAVES_SEC)
        return max(usual, _LEAST_SAVES_APART * self.save_sec)


class KeepTime(TrainerCallback, ExportableState):
    """Has transformers' Trainer follow a budget; its checkpoints keep how far the training was by time."""

    def __init__(self, budget: TimeBudget, agree: Agree) -> None:
        self._budget, self._agree = budget, agree

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"share": self._budget.share, "has_learned": self._budget.has_learned}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._budget.begin(**state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        # Trainer moves the learning rate after this call, and calls `on_step_end` after that.
        self._budget.end_step(max(float(group["lr"]) for group in optimizer.param_groups), self._agree)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._budget.is_over:
            control.should_training_stop = control.should_log = True
        elif self._budget.is_due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._budget.end_save(self._agree)
        if self._budget.is_over:
            control.should_training_stop = control.should_log = True


class AnswersInTime:
    """Called before each batch of the model's own answers, which precede training: InputError if the next may not fit."""

    def __init__(self, settings: FinetuneSettings, clock: Clock) -> None:
        self._minutes, self._clock = settings.max_minutes, clock
        self._before: float | None = None
        self._slowest_sec = 0.0

    def __call__(self) -> None:
        now = self._clock()
        self._slowest_sec = max(self._slowest_sec, now - (now if self._before is None else self._before))
        self._before = now
        if self._minutes is not None and now + self._slowest_sec > self._minutes * 60 - _TAIL_SEC:
            raise InputError(
                f"A budget of max_minutes={self._minutes:g} went into the model's own answers before training began: run "
                "the same command again, for what was written is kept, or give more minutes."
            )


def anneal_by_time(scheduler: Any, budget: TimeBudget) -> None:
    """Have a learning rate schedule of transformers follow `budget.position` in place of the number of steps."""
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors:
        raise InputError(
            f"The learning rate schedule {type(scheduler).__name__} cannot follow the clock: train without max_minutes, or "
            "leave lr_scheduler_type out of the trainer's options."
        )
    scheduler.lr_lambdas = [_by_position(factor, budget) for factor in factors]


def _by_position(factor: Callable[[int], float], budget: TimeBudget) -> Callable[[int], float]:
    return lambda step: factor(budget.position(step))
