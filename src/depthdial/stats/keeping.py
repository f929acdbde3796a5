"""Does something keep enough of what something else has? Yes, no, or not decided by these data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from depthdial.checks import share
from depthdial.stats.intervals import Interval

Answer = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Keeping:
    """A share that is kept, beside the one that was asked for.

    Attributes:
        kept: the share, with its 95% interval.
        keep: what was asked for, above 0 and at most 1.

    Raises:
        InputError: for another `keep`.

    Example:
        >>> Keeping(Interval(0.97, 0.96, 0.98, 40), 0.95).answer, Keeping(Interval(0.97, 0.90, 1.04, 4), 0.95).answer
        ('yes', 'undecided')
    """

    kept: Interval
    keep: float

    def __post_init__(self) -> None:
        share("keep", self.keep)

    @property
    def answer(self) -> Answer:
        """`yes` if the whole interval lies at `keep` or above, `no` if below it; a single sequence decides nothing."""
        if math.isnan(self.kept.low):
            return "undecided"
        return "yes" if self.kept.low >= self.keep else "no" if self.kept.high < self.keep else "undecided"

    def sentence(self, what: str) -> str:
        """One line: "Keeps at least 95% of WHAT: yes, 97.0% [96.0%, 98.0%] on 40 rows."."""
        kept = self.kept
        ends = "" if math.isnan(kept.low) else f" [{kept.low:.1%}, {kept.high:.1%}]"
        rows = f"{kept.n} row{'s' * (kept.n != 1)}"
        return f"Keeps at least {100 * self.keep:g}% of {what}: {self.answer}, {kept.mean:.1%}{ends} on {rows}."
