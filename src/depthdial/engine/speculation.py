"""What drafts the tokens of lossless answers, and what became of the drafts: `Drafting`, and `Speculation` of one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from depthdial.engine.batch import in_rows
from depthdial.engine.draft_length import DraftLength, Learned, PassTimes
from depthdial.engine.lookup import LONGEST, SHORTEST
from depthdial.routes import Route, leading_layers

if TYPE_CHECKING:  # it imports scipy
    from depthdial.latency.model import LatencyModel

ROUTE, LOOKUP = "route", "lookup"  # sources of drafts
# Why nothing is drafted.
NOTHING = "nothing to draft"
OTHERS = "others ran beside it"
GUIDED = "guidance_scale runs two prompts at once"
PROCESSED = "logits processors that may keep a state would see drafts"

# Acceptance that is expected before any was seen: of a route's token, and of a copied one by the length of the match.
_PRIORS = {ROUTE: 0.7} | {f"{LOOKUP} {n}": 0.25 * n for n in range(SHORTEST, LONGEST)} | {f"{LOOKUP} {LONGEST}": 0.8}


@dataclass(frozen=True)
class Speculation:
    """What speculation did for one answer; its text is `speculation: off (expected 0.96x)`, or how it went.

    Attributes:
        draft: what drafts: a route's name, `lookup`, or both.
        steps: passes of one token, without drafts.
        rounds: passes that checked drafts.
        drafted, accepted: tokens of the answer, by their place in a draft.
        layers_run: layers that ran behind the answer's first token, each as often as tokens ran through it.
        expected_speedup: over plain decoding, from acceptance and times: of the answer's batch; where drafts were not on, of
            the best setting of the draft's route. None where nothing could be drafted.
        why_off: why nothing was tried; None where it was.

    Example:
        >>> answer = dd.generate(model, tokenizer, "the cat", depth="lossless:uls:50%", max_new_tokens=8)[0]
        >>> str(answer.speculation).split(": ")[0]
        'speculation'
    """

    draft: str
    steps: int = 0
    rounds: int = 0
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    layers_run: int = 0
    expected_speedup: float | None = None
    why_off: str | None = None

    @property
    def is_on(self) -> bool:
        """Whether most passes checked drafts, or drafts brought a tenth as many tokens as there were passes.

        Otherwise they were tried at most.
        """
        return self.rounds > self.steps or 0 < 0.1 * (self.steps + self.rounds) <= sum(self.accepted)

    @property
    def acceptance(self) -> float:
        """Of all drafted tokens, the share that was accepted; nan without any."""
        return sum(self.accepted) / sum(self.drafted) if self.drafted else float("nan")

    def __str__(self) -> str:
        expected = "" if self.expected_speedup is None else f"expected {self.expected_speedup:.2f}x"
        if self.why_off is not None:
            return f"speculation: off ({self.why_off})"
        if not self.is_on:
            return f"speculation: off ({expected or NOTHING})"
        told = [
            f"drafts by {self.draft} in {self.rounds} of {self.steps + self.rounds} passes",
            f"{sum(self.accepted)} of {sum(self.drafted)} tokens accepted",
        ]
        return f"speculation: on ({', '.join([*told, *([expected] if expected else [])])})"


@dataclass
class Counts:
    """What became of one row's drafts; see `Speculation`."""

    steps: int = 0
    rounds: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    layers_run: int = 0

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """A round of a row; one without a draft of its own is a plain step, in the company of others' checks."""
        if not n_drafted:
            self.steps += 1
            return
        self.rounds += 1
        for counts, n in ((self.drafted, n_drafted), (self.accepted, n_accepted)):
            counts += [0] * (n_drafted - len(counts))
            for place in range(n):
                counts[place] += 1


@dataclass
class Drafting:
    """What drafts for a model, and for the rows of the last batch what became of it.

    Attributes:
        route: whose layers draft; None for none.
        lookup: whether tokens are copied from the prompt and the answer itself too.
        model: what runs the route, a view of all layers in evaluation mode; None for the model that checks.
        draft_tokens: in each round; None for as many as pay.
        latency: a latency model; None for times as they are measured while running.
        rejects: whether sampled drafts are judged by rejection sampling, and not by the plain answer's own draws.
        why_off: why nothing is drafted; None where it may be.
        learned: from batch to batch.
        length: of the last batch.
        counts: a row each, of the last batch.

    Raises:
        ValueError: with nothing to draft with.
    """

    route: Route | None
    lookup: bool = False
    model: Any = None
    draft_tokens: int | None = None
    latency: LatencyModel | None = None
    rejects: bool = False
    why_off: str | None = None
    counts: list[Counts] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.route is None and not self.lookup:
            raise ValueError("Drafts come from a route, from lookup or from both: give one of them.")
        n_layers = 1 if self.route is None else self.route.n_layers
        # A head and what does not depend on layers weigh about as much as a quarter of the layers.
        share = 1.0 if self.route is None else (len(self.route) + 0.25 * n_layers) / (1.25 * n_layers)
        self.learned = Learned(PassTimes(share, self.latency, self.route, self.reused_layers), _PRIORS)
        self.length = DraftLength(self.learned)

    @property
    def name(self) -> str:
        return " and ".join(([] if self.route is None else [self.route.name]) + [LOOKUP] * self.lookup)

    @property
    def reused_layers(self) -> int:
        """How many first layers draft and model have in common: those before the first that the route skips."""
        return 0 if self.route is None or self.model is not None else leading_layers(self.route)

    def fits(self, model: Any, depth: Any, max_new_tokens: int) -> bool:
        """Whether drafts can be tried on a batch; `why_off` says why not."""
        self.counts = []
        if self.why_off is None and max_new_tokens > 1 and not (in_rows(model) and in_rows(self.model or model)):
            self.why_off = "this architecture is not decoded in rows"
        return self.why_off is None and max_new_tokens > 1 and isinstance(depth, Route) and depth.is_full

    def told(self, row: int) -> Speculation:
        """What became of the drafts of a row of the last batch."""
        if not self.counts:
            return Speculation(self.name, why_off=self.why_off or NOTHING)
        counts = self.counts[row]
        told = Speculation(
            self.name,
            counts.steps,
            counts.rounds,
            tuple(counts.drafted),
            tuple(counts.accepted),
            counts.layers_run,
        )
        expected = None if told.is_on or self.route is None else self.length.expected.get(ROUTE)
        if expected is None and (told.rounds or self.route is None):
            expected = self.length.speedup
        return replace(told, expected_speedup=expected)


def kind_of_match(n_tokens: int) -> str:
    """The kind of draft that a copy behind a match of so many tokens is."""
    return f"{LOOKUP} {max(n_tokens, SHORTEST)}"


def widest(drafts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
    """Drafts of one length: what is missing is any token, for it is not judged."""
    return [[*draft[:n_tokens], *[0] * (n_tokens - len(draft))] for draft in drafts]
