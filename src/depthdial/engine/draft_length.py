"""How many tokens to draft, if any: from how often drafts were accepted and what passes took, with a bound on the loss.

The expected speed-up of a round of k drafted tokens is E[accepted + 1] / (k c + v(k + 1)), where c is the time of a drafting
step and v(m) that of a check of m tokens, in units of a plain step of as many rows (Leviathan et al., arXiv 2211.17192). A
setting is used where that is above 1 by a margin. Where no setting is, one is tried now and then, at growing intervals. All
the time lost on rounds that brought less than they took, wrong guesses included, is kept near 1% of a batch's time: a round
is not begun that may well lose more.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports scipy
    from depthdial.latency.model import LatencyModel

DRAFT_TOKENS = (1, 2, 3, 4, 8)  # 3, for a check of 4 tokens: what a CPU reads as fast as one

_MARGIN = 1.02  # a setting is switched on where it is expected to gain as much, and off where it loses
_LOSS_STEPS, _LOSS_SHARE = 0.2, 0.01  # what speculation may lose: in plain steps, and as a share of all of them
_HOPE = 0.5  # of what a round is expected to gain, what is counted on
_REST_STEPS = 8  # plain steps until drafts of a route are thought of again
_MOST_CREDIT_STEPS = 2.0  # of what was gained before, against what may be lost later
_FIRST_PROBE_STEPS, _LAST_PROBE_STEPS = 6, 512
_WORTH_A_TRY = 1.1  # how much faster another setting must be by guessed times to be tried while one pays
_MOST_ROUNDS = 16  # between plain steps, whose time the others are held against
_KEPT_TIMES = 7
_CHECKED_TOKEN = 0.08  # of a plain step's time, what one more token in a check is guessed to take
_DECAY = 0.95  # of what was seen before, a round
_PRIOR_TRIALS = 2.0


class Acceptance:
    """How often a drafted token is accepted where those before it are, by its place in the draft.

    Moving averages, each drawn to that of the place before it as long as little was seen.

    Args:
        prior: expected of the first place.

    Example:
        >>> seen = Acceptance(prior=0.5)
        >>> for _ in range(50):
        ...     seen.note(2, 2)
        >>> seen.tokens(2) > 1.8
        True
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._trials: list[float] = []
        self._hits: list[float] = []

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """A draft of a row, of which the first tokens were accepted."""
        n_judged = min(n_accepted + 1, n_drafted)  # those behind the first that was wrong say nothing
        missing = [0.0] * (n_judged - len(self._trials))
        self._trials += missing
        self._hits += missing
        for place in range(n_judged):
            self._trials[place] = self._trials[place] * _DECAY + 1
            self._hits[place] = self._hits[place] * _DECAY + (place < n_accepted)

    def tokens(self, n_drafted: int) -> float:
        """How many of so many drafted tokens are expected to be accepted."""
        chance, run, total = self._prior, 1.0, 0.0
        for place in range(n_drafted):
            trials, hits = (self._trials[place], self._hits[place]) if place < len(self._trials) else (0.0, 0.0)
            chance = (hits + _PRIOR_TRIALS * chance) / (trials + _PRIOR_TRIALS)
            run *= chance
            total += run
        return total


class PassTimes:
    """What passes take by their number of rows, in plain steps: measured as they run, or before that guessed.

    A pass is held against the plain steps just before it, so that a machine that others use as well does not mislead.

    Args:
        draft_share: of a plain step's time, what a drafting step is guessed to take.
        latency: a latency model, whose times stand for those that were not measured yet.
        route: that drafts, and `reused_layers` that a check does not run again, for the latency model.
    """

    def __init__(
        self, draft_share: float, latency: LatencyModel | None = None, route: Any = None, reused_layers: int = 0
    ) -> None:
        self._draft_share, self._latency, self._route, self._reused = draft_share, latency, route, reused_layers
        self._steps: dict[int, deque[float]] = {}
        self._ratios: dict[tuple[str, int, int], deque[float]] = {}

    def start(self) -> None:
        """A new batch, maybe long after the last: what is measured in it soon counts more than what was before."""
        for ratios in self._ratios.values():
            while len(ratios) > 1:
                ratios.popleft()

    def note(self, kind: str, rows: int, sec: float, tokens: int = 1) -> None:
        """A pass that took so many seconds: `step`, `draft` or `check`."""
        if kind == "step":
            self._steps.setdefault(rows, deque(maxlen=_KEPT_TIMES)).append(sec)
        elif self.knows_step(rows):
            ratio = sec / _typical(self._steps[rows])
            self._ratios.setdefault((kind, rows, tokens), deque(maxlen=_KEPT_TIMES)).append(ratio)

    def knows_step(self, rows: int) -> bool:
        return rows in self._steps

    def draft(self, rows: int, *, guess: bool = False) -> float:
        """A drafting step; with `guess` as if none had been measured."""
        found = None if guess else self._measured("draft", rows, 1)
        if found is not None:
            return found
        if self._latency is not None:
            return self._latency.route_sec(self._route, rows) / self._latency.route_sec(None, rows)
        return self._draft_share

    def check(self, rows: int, tokens: int, *, guess: bool = False) -> float:
        """A check of so many tokens of each row; with `guess` as if none had been measured."""
        found = None if guess else self._measured("check", rows, tokens)
        if found is not None:
            return found
        if self._latency is not None:
            sec = self._latency.verify_sec(rows, tokens, reused_layers=self._reused)
            return sec / self._latency.route_sec(None, rows)
        checked = set() if guess else {m for kind, _, m in self._ratios if kind == "check"}
        known = {1: 1.0} | {m: ratio for m in checked if (ratio := self._measured("check", rows, m)) is not None}
        below = max(m for m in known if m <= tokens)
        above = min((m for m in known if m > tokens), default=None)
        if above is not None:
            share = (tokens - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        slope = _CHECKED_TOKEN if below == 1 else max((known[below] - 1) / (below - 1), 0.0)
        return known[below] + slope * (tokens - below)

    def _measured(self, kind: str, rows: int, tokens: int) -> float | None:
        """Of as many rows, or else of the nearest number of rows that it was measured with."""
        known = [n for one, n, m in self._ratios if one == kind and m == tokens]
        if not known:
            return None
        return _typical(self._ratios[kind, min(known, key=lambda n: abs(n - rows)), tokens])


def _typical(times: Sequence[float]) -> float:
    """The first passes of a kind take longer, for they come upon cold caches."""
    return min(times) if len(times) < 3 else statistics.median(times)


@dataclass(frozen=True, order=True)
class Setting:
    """What drafts in a round, and how many tokens at most.

    Attributes:
        source: by name; empty for a plain step.
    """

    source: str = ""
    draft_tokens: int = 0


PLAIN = Setting()


@dataclass(frozen=True)
class Offer:
    """What one source can draft in the next round.

    Attributes:
        kinds: for each row, whose past drafts say how well this one will be accepted.
        n_tokens: for each row, how many tokens at most.
        is_free: whether drafting takes no time.
    """

    kinds: Sequence[str]
    n_tokens: Sequence[int]
    is_free: bool = False


@dataclass
class Learned:
    """What is known of a model's drafts, from one batch to the next.

    Attributes:
        times: of passes.
        priors: acceptance that is expected of each kind of draft before any was seen.
    """

    times: PassTimes
    priors: Mapping[str, float]
    acceptance: dict[str, Acceptance] = field(default_factory=dict)

    def of(self, kind: str) -> Acceptance:
        if kind not in self.acceptance:
            self.acceptance[kind] = Acceptance(self.priors[kind])
        return self.acceptance[kind]


@dataclass
class DraftLength:
    """Chooses how many tokens are drafted in the rounds of one batch; learns from what it is told of them.

    Attributes:
        expected: speed-up of each source's best setting, as it was expected last.

    Example:
        >>> choice = DraftLength(Learned(PassTimes(draft_share=0.5), {"route": 0.9}))
        >>> choice.next(1, {"route": Offer(["route"], [8])})  # the first step is a plain one, for its time
        Setting(source='', draft_tokens=0)
    """

    learned: Learned
    expected: dict[str, float] = field(default_factory=dict)
    _now: Setting = PLAIN
    _balance: float = 0.0  # plain steps that speculation gained, and lost
    _n_steps: float = 0.0  # plain steps that the batch would have taken
    _spent: float = 0.0  # plain steps' time that it took
    _since_probe: int = 0
    _rest: int = 0
    _rounds: int = 0
    _probe_after: int = _FIRST_PROBE_STEPS

    def __post_init__(self) -> None:
        self.learned.times.start()

    @property
    def speedup(self) -> float:
        """Of this batch over plain decoding, by the times of its passes."""
        return self._n_steps / self._spent if self._spent else 1.0

    @property
    def rests(self) -> bool:
        """Whether drafts of a route need not be thought of in this step: they did not pay a few steps ago."""
        return self._rest > 0

    def next(self, rows: int, offers: Mapping[str, Offer]) -> Setting:
        """What to do next."""
        self._rest = 0
        if not self.learned.times.knows_step(rows) or self._rounds >= _MOST_ROUNDS:
            return PLAIN
        found = []
        for name, offer in offers.items():
            for k in (k for k in DRAFT_TOKENS if k <= max(offer.n_tokens)):
                gained, cost = self._gained(rows, offer, k), self._cost(rows, offer, k)
                found.append((gained / cost, Setting(name, k), gained, cost))
        for name in offers:
            self.expected[name] = max(speedup for speedup, setting, _, _ in found if setting.source == name)
        allowed = [(speedup, setting) for speedup, setting, gained, cost in found if self._may_lose(gained, cost)]
        speedup, best = max(allowed, default=(0.0, PLAIN))
        is_on = speedup > (1 if best.source == self._now.source else _MARGIN)
        self._now = best if is_on else PLAIN
        self._since_probe += is_on
        if self._since_probe >= self._probe_after:
            self._since_probe, self._probe_after = 0, min(2 * self._probe_after, _LAST_PROBE_STEPS)
            tried = self._guessed(rows, offers, [(setting, gained) for _, setting, gained, _ in found])
            if tried is not None and not (is_on and tried[0] < _WORTH_A_TRY * speedup):
                return tried[1]
        return best if is_on else self._off()

    def _guessed(
        self, rows: int, offers: Mapping[str, Offer], found: Sequence[tuple[Setting, float]]
    ) -> tuple[float, Setting] | None:
        """The best setting by guessed times, for measured ones may be of another time, if it would not lose much."""
        allowed = []
        for setting, gained in found:
            cost = self._cost(rows, offers[setting.source], setting.draft_tokens, guess=True)
            could_pay = (setting.draft_tokens + 1) / cost > _MARGIN  # if all tokens were accepted
            if could_pay and self._may_lose(gained, cost):
                allowed.append((gained / cost, setting))
        return max(allowed, default=None)

    def _off(self) -> Setting:
        self._rest = _REST_STEPS
        return PLAIN

    def _gained(self, rows: int, offer: Offer, draft_tokens: int) -> float:
        """Tokens that are expected of a round, for each row."""
        alike = Counter((kind, min(draft_tokens, n)) for kind, n in zip(offer.kinds, offer.n_tokens, strict=True) if n)
        return 1 + sum(n_rows * self.learned.of(kind).tokens(n) for (kind, n), n_rows in alike.items()) / rows

    def note_step(self, rows: int, sec: float | None) -> None:
        """A plain step; None seconds for one whose time says nothing of others."""
        if sec is not None:
            self.learned.times.note("step", rows, sec)
        self._n_steps += 1
        self._spent += 1
        self._since_probe += 1
        self._rest -= 1
        self._rounds = 0

    def note_round(
        self, rows: int, offer: Offer, draft_tokens: int, n_drafted: Sequence[int], n_accepted: Sequence[int]
    ) -> None:
        """A round, whose times are told already, and what became of each row's drafts."""
        for kind, drafted, accepted in zip(offer.kinds, n_drafted, n_accepted, strict=True):
            if drafted:
                self.learned.of(kind).note(drafted, accepted)
        self._rounds += 1
        gained = 1 + sum(n_accepted) / rows
        cost = self._cost(rows, offer, draft_tokens)
        self._n_steps += gained
        self._spent += cost
        self._balance = min(self._balance + gained - cost, _MOST_CREDIT_STEPS)

    def _cost(self, rows: int, offer: Offer, draft_tokens: int, *, guess: bool = False) -> float:
        times = self.learned.times
        drafting = 0.0 if offer.is_free else draft_tokens * times.draft(rows, guess=guess)
        return drafting + times.check(rows, draft_tokens + 1, guess=guess)

    def _may_lose(self, gained: float, cost: float) -> bool:
        """Whether a round may fall so far short of what is expected of it."""
        loss = cost - 1 - _HOPE * (gained - 1)
        return self._balance - loss >= -(_LOSS_STEPS + _LOSS_SHARE * self._n_steps)
