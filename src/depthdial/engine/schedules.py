"""Two ways to run rows of several routes, and which of them takes less time: decided by measured seconds of steps alone.

Layer-major: all rows are one batch, and a step calls a layer once, for the rows whose route has it; every answer waits its
turn. By route: rows of a route are a batch of their own, which is filled up from the queue with requests of the same route,
so that each layer that is called runs for many rows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from depthdial.engine.groups import Work
from depthdial.routes import Route

Schedule = Literal["layer-major", "by-route"]
SCHEDULES = ("auto", "layer-major", "by-route")

_KEPT_STEPS = 32  # of each kind of step, the latest
_KEPT_KINDS = 256  # the latest: with random routes nearly every step is of its own kind
_LEAST_GAIN = 0.05  # below this a change of schedule, which splits the rows that run, is not made


class StepCost(Protocol):
    """Seconds of a decoding step; `dd.LatencyModel` is one."""

    def step_sec(self, layers: Sequence[Any], context_tokens: float | None = None) -> float:
        """Of a batch that is walked layer by layer; `layers` has the layers of each row."""
        ...


class MeasuredSteps:
    """A cost fitted to the steps that an engine has run: fixed + by layer + by row + by row of a layer.

    Medians of the latest steps of each kind, by how many they are, so that neither a slow one nor what ran long ago tells.

    Example:
        >>> cost = MeasuredSteps()
        >>> for layers, rows in ((6, 1), (3, 1), (6, 4), (3, 4)):
        ...     cost.observe(Work(rows, layers, layers * rows), 0.010 + 0.001 * layers + 0.001 * rows)
        >>> cost.is_ready, round(cost.step_sec([(0, 1, 2, 3)] * 2), 4)
        (True, 0.016)
    """

    def __init__(self) -> None:
        self._seconds: dict[Work, deque[float]] = {}
        self._parts: np.ndarray | None = None

    def observe(self, work: Work, seconds: float) -> None:
        """A step that was run."""
        latest = self._seconds.pop(work, None)
        self._seconds[work] = deque(maxlen=_KEPT_STEPS) if latest is None else latest
        self._seconds[work].append(seconds)
        if len(self._seconds) > _KEPT_KINDS:
            del self._seconds[next(iter(self._seconds))]
        self._parts = None

    @property
    def is_ready(self) -> bool:
        """Whether steps of unlike numbers of layers and rows have been seen, so that each part is known."""
        return bool(np.linalg.matrix_rank(self._kinds()) == 4)

    def step_sec(self, layers: Sequence[Any], context_tokens: float | None = None) -> float:
        """Seconds of one step; `layers` has the layers of each row. The context is that of the steps that were run."""
        parts = self._parts
        if parts is None:
            from scipy.optimize import nnls

            medians = np.array([np.median(seconds) for seconds in self._seconds.values()])
            weights = np.sqrt([len(seconds) for seconds in self._seconds.values()])
            parts = self._parts = np.asarray(nnls(self._kinds() * weights[:, None], medians * weights)[0])
        rows: Counter[int] = Counter()
        for one in layers:
            rows.update(getattr(one, "layers", one))
        return float(parts @ [1, len(rows), len(layers), rows.total()])

    def _kinds(self) -> np.ndarray:
        kinds = [(1, work.layers, work.rows, work.row_layers) for work in self._seconds]
        return np.array(kinds, dtype=float).reshape(-1, 4)


@dataclass(frozen=True)
class Choice:
    """A schedule, and why it is the one."""

    schedule: Schedule
    why: str


class Chooser:
    """Decides about the schedule, again and again.

    Args:
        asked: one of `SCHEDULES`.
        cost: of steps; None to measure them.
    """

    def __init__(self, asked: str, cost: StepCost | None) -> None:
        self.measured = MeasuredSteps() if cost is None else None
        self.wants_probe = False  # of steps of fewer layers and of fewer rows: without them their parts are not known
        self._asked, self._cost = asked, cost
        self.now = Choice("layer-major", "nothing has been decided yet")
        if asked != "auto":
            self.now = Choice("by-route" if asked == "by-route" else "layer-major", "it was asked for")

    def decide(self, routes: Sequence[Route], most_rows: int) -> None:
        """Compare both ways to give each of these requests one more token.

        Args:
            routes: of requests that run or wait, in their order.
            most_rows: that run at once.
        """
        if self._asked != "auto":
            return
        kinds = Counter(routes)
        if len(kinds) < 2:
            self._settle("layer-major", "all requests are on one route, for which both are the same")
            return
        cost = self._cost if self._cost is not None else self.measured
        assert cost is not None
        if self.measured is not None and len(routes) <= most_rows:
            # No part of a fitted step is below 0, and one walk has each part at most as often as several.
            self._settle("layer-major", f"all {len(routes)} requests have rows at once, so no layer need be called twice")
            return
        if self.measured is not None and not self.measured.is_ready:
            self.wants_probe = True
            self._settle("layer-major", "too few kinds of steps have been measured yet to tell")
            return
        together = sum(cost.step_sec(part) for part in _parts(routes, most_rows))
        apart = sum(cost.step_sec(part) for route, n in kinds.items() for part in _parts([route] * n, most_rows))
        is_apart = apart < together
        if min(together, apart) > (1 - _LEAST_GAIN) * max(together, apart):
            is_apart = self.now.schedule == "by-route"
        origin = "measured steps" if self.measured is not None else "the latency model"
        self._settle(
            "by-route" if is_apart else "layer-major",
            f"a token for each of {len(routes)} requests on {len(kinds)} routes takes {1000 * together:.3g} ms layer-major "
            f"and {1000 * apart:.3g} ms by route, by {origin}",
        )

    def _settle(self, schedule: Schedule, why: str) -> None:
        self.now = Choice(schedule, why)


def _parts(routes: Sequence[Route], most_rows: int) -> list[Sequence[Route]]:
    return [routes[start : start + most_rows] for start in range(0, len(routes), most_rows)]
