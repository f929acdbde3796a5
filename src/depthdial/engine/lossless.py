"""The depth `lossless`: the full model's own answers, faster where drafts pay."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from depthdial.checks import choice, whole
from depthdial.engine.draft_length import Learned
from depthdial.engine.speculation import LOOKUP, Drafting
from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap
from depthdial.hf.known_routes import route_within, searched_routes
from depthdial.routes import Route

if TYPE_CHECKING:  # it imports scipy
    from depthdial.latency.model import LatencyModel

NAME = "lossless"
AUTO = "auto"
UNTOUCHED, ADAPTED = "untouched", "adapted"
PLAIN, REJECTION = "plain", "rejection"

# What was learned of a model's drafts, for its next answers: times and acceptance, which no token depends on.
_learned: weakref.WeakKeyDictionary[Any, dict[Any, Learned]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Lossless:
    """Full depth, with tokens drafted on fewer layers (or copied) and checked by all of them: `depth="lossless"`.

    Answers are the plain ones at full depth, token by token, also sampled ones for a seed (in fp32; in bf16 a pass over
    several tokens may round otherwise than one over a single token, and a near tie fall otherwise). Whether and how many
    tokens are drafted is decided while running, from acceptance and times; where drafts do not pay, decoding is plain.

    Attributes:
        draft: a depth that means one route, such as `"uls:50%"`; `auto` for the best known route of at most half of the
            layers (its adapter's, or a searched one; none where nothing is known) and copies; `lookup` for copies alone.
        lookup: whether tokens are also copied from the prompt and the answer itself, where the last few stood before;
            default: unless a route is given.
        verify: with an adapter: answers are those of the `untouched` full model, or of the `adapted` one. Drafts use the
            adapter either way.
        draft_tokens: in every round; default: as many as pay, none included.
        sampling: of sampled answers: `plain` (the plain answer of their seed, token by token) or `rejection` (of the same
            distribution, from other draws: more drafts are accepted, but where rounds begin changes an answer, and with
            it how fast the machine was).
        latency: a `LatencyModel`, its file or the folder of a bench; default: times as they are measured while running.

    Example:
        >>> fast = dd.Lossless("uls:50%", lookup=True)
        >>> answers = dd.generate(model, tokenizer, ["the cat", "a dog"], depth=fast, max_new_tokens=6)
        >>> answers[0].tokens == dd.generate(model, tokenizer, "the cat", max_new_tokens=6)[0].tokens
        True
    """

    draft: Any = AUTO
    lookup: bool | None = None
    verify: str = UNTOUCHED
    draft_tokens: int | None = None
    sampling: str = PLAIN
    latency: Any = None

    def __post_init__(self) -> None:
        choice("model that verifies", self.verify, (UNTOUCHED, ADAPTED))
        choice("way of sampling", self.sampling, (PLAIN, REJECTION))
        if self.draft_tokens is not None:
            whole("draft_tokens", self.draft_tokens, 1)
        if self.lookup is not None and not isinstance(self.lookup, bool):
            raise InputError(f"Invalid lookup {self.lookup!r}: use True or False, or leave it out.")
        if self.draft == LOOKUP and self.lookup is False:
            raise InputError("The draft 'lookup' with lookup=False drafts nothing: leave lookup out, or give a route.")

    @classmethod
    def read(cls, given: Any) -> Lossless | None:
        """Of text such as `lossless:24`, or itself; None for anything else.

        Raises:
            InputError: for nothing behind the colon.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str):
            return None
        name, colon, draft = given.strip().partition(":")
        if name != NAME:
            return None
        if colon and not draft.strip():
            raise InputError(
                f"The depth {given!r} names no draft: give a route, such as lossless:uls:50%, or {NAME!r} alone."
            )
        return cls(draft.strip() if colon else AUTO)

    @property
    def draft_is_named(self) -> bool:
        return not (isinstance(self.draft, str) and self.draft in (AUTO, LOOKUP))

    @property
    def copies(self) -> bool:
        """Whether tokens are copied too."""
        return (not self.draft_is_named) if self.lookup is None else self.lookup

    def known_route(self, model: Any) -> Route | None:
        """The route that drafts where none is named."""
        known = None if self.draft == LOOKUP else searched_routes(model)
        shallow = [] if known is None else [route for route in known if not route.is_full]
        if not shallow:
            return None
        return route_within(tuple(shallow), max(0.5, min(route.cost for route in shallow)))

    def with_times(self, n_layers: int) -> Lossless:
        """The same with its latency model read, which is to be of a model of so many layers.

        Raises:
            InputError: for what is no latency model, one of another model, or one without checks of drafts.
        """
        return self if self.latency is None else replace(self, latency=_latency(self.latency, n_layers))

    def drafting(self, route: Route | None, model: Any, draft: Any) -> Drafting:
        """For one batch.

        Args:
            model: the caller's, by which what was learned is remembered.
            draft: what runs the route; None for the model that checks.
        """
        copies = self.copies or route is None
        rejects = self.sampling == REJECTION
        drafting = Drafting(route, copies, draft, self.draft_tokens, self.latency, rejects)
        if self.latency is None:
            key = (None if route is None else route.layers, copies, draft is None, rejects)
            drafting.learned = _learned.setdefault(unwrap(model), {}).setdefault(key, drafting.learned)
        return drafting

    def __str__(self) -> str:
        return NAME if isinstance(self.draft, str) and self.draft == AUTO else f"{NAME}:{self.draft}"


def _latency(given: Any, n_layers: int) -> LatencyModel:
    from depthdial.latency.model import LatencyModel

    found = given if isinstance(given, LatencyModel) else LatencyModel.load(given)
    found.require_fits(n_layers)
    found.verify_sec(1, 2)  # refuses one that has timed no check
    return found
