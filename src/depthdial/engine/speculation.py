"""Lossless self-speculation: some layers of a model draft tokens, and all of them check the drafts in one pass.

One set of keys and values. A draft writes those of its route's layers behind a row's length; the pass that checks runs every
layer over the same places and overwrites them; and a row's length then grows by what it keeps, so that rows of one batch
accept as many tokens as each can. Layers before the first that the route skips give the same states both times and are not
run again (LayerSkip, arXiv 2404.16710, section 4.3).

A token is drafted as the plain token would be chosen from the draft's logits, by the same processors and the same counted
draw, and kept where the full model's logits choose it too. So answers are the plain ones, token by token, also sampled ones
for a seed, whatever was drafted, in whichever batch and rounds: their distribution is the full model's by construction. With
drafts that are drawn by themselves (arXiv 2211.17192; `engine.rejection`) an answer would depend on where rounds begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from depthdial.engine.batch import in_rows
from depthdial.engine.prefill import Prefill
from depthdial.engine.row_stream import RowStream
from depthdial.engine.sampler import Sampler
from depthdial.engine.walk import Prefix, Walk
from depthdial.hf.facts import ModelFacts
from depthdial.routes import Route


@dataclass
class Drafting:
    """How answers are drafted, and for the rows of one batch what became of it.

    Attributes:
        route: whose layers draft.
        draft_tokens: in each round.
        model: what drafts, a view of all layers in evaluation mode; None for the model that checks.
        counts: one a row, once a batch runs.
    """

    route: Route
    draft_tokens: int
    model: Any = None
    counts: list[Counts] = field(default_factory=list)

    def fits(self, model: Any, depth: Any, max_new_tokens: int) -> bool:
        """Whether a batch can be speculated on at all."""
        return max_new_tokens > 1 and isinstance(depth, Route) and depth.is_full and in_rows(model)


@dataclass
class Counts:
    """What became of one row's drafts.

    Attributes:
        steps: passes of one token, without drafts.
        rounds: passes that checked drafts.
        drafted, accepted: tokens by their place in a draft.
    """

    steps: int = 0
    rounds: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """A round of a row."""
        self.rounds += 1
        for counts, n in ((self.drafted, n_drafted), (self.accepted, n_accepted)):
            counts += [0] * (n_drafted - len(counts))
            for place in range(n):
                counts[place] += 1


class SpeculativeStream(RowStream):
    """Rows of full depth of which a step may bring several tokens: those that were drafted and are the model's own.

    Args:
        sampler: of these rows; accepted tokens are added to its answers.
    """

    def __init__(
        self,
        model: Any,
        prefilled: Prefill,
        max_new_tokens: int,
        sampler: Sampler,
        drafting: Drafting,
    ) -> None:
        super().__init__(model, [prefilled.route] * prefilled.n_sequences, prefilled, max_new_tokens)
        self._sampler, self._drafting = sampler, drafting
        self._context_tokens = ModelFacts.of(model).context
        self._draft_walk = None if drafting.model is None else Walk(drafting.model)
        self._layers = frozenset(drafting.route.layers)
        self._prefix_layers = 0 if drafting.model is not None else reused_layers(drafting.route)
        drafting.counts = self._counts = [Counts() for _ in range(prefilled.n_sequences)]

    def step(self, tokens: torch.Tensor, is_over: torch.Tensor) -> None:
        self._leave(is_over)
        rows = [int(key) for key in self._batch.keys]  # type: ignore[call-overload]
        # A row keeps at most its drafts, and the loop chooses one more token behind them.
        most = min(self._drafting.draft_tokens, self._places())
        n_drafts = [most if (room := self._sampler.room(row)) is None else min(most, room - 1) for row in rows]
        if not any(n_drafts):
            self._run(tokens)
            for row in rows:
                self._counts[row].steps += 1
        else:
            self._round(tokens[rows], rows, n_drafts)

    def _places(self) -> int:
        """How many drafted tokens every row has room for in the context: rows with fewer drafts are run with as many."""
        if self._context_tokens is None:
            return self._drafting.draft_tokens
        return self._context_tokens - 1 - max(self._batch.lengths)

    def _round(self, pending: torch.Tensor, rows: Sequence[int], n_drafts: Sequence[int]) -> None:
        prefix = Prefix(self._prefix_layers) if self._prefix_layers else None
        drafts = self._drafted(pending, rows, max(n_drafts), prefix)
        self._check(pending, rows, drafts, n_drafts, prefix)

    def _drafted(self, pending: torch.Tensor, rows: Sequence[int], n_tokens: int, prefix: Prefix | None) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in rows]
        for place in range(n_tokens):
            logits = self._batch.run(pending[:, None], ahead=place, layers=self._layers, keep=prefix, walk=self._draft_walk)
            pending = self._sampler.tokens_behind(rows, drafts, logits[:, -1])
            for draft, token in zip(drafts, pending.tolist(), strict=True):
                draft.append(token)
        return drafts

    def _check(
        self,
        pending: torch.Tensor,
        rows: Sequence[int],
        drafts: Sequence[Sequence[int]],
        n_drafts: Sequence[int],
        prefix: Prefix | None,
    ) -> None:
        """Run every layer over drafts, of one length, and keep what the full model chooses too."""
        k = len(drafts[0])
        tokens = torch.cat([pending[:, None], torch.tensor(drafts, device=pending.device)], dim=1)
        logits = self._batch.run(tokens, resume=prefix).float()
        behind = [draft[:place] for draft in drafts for place in range(k)]
        chosen = self._sampler.tokens_behind(
            [row for row in rows for _ in range(k)], behind, logits[:, :k].flatten(0, 1)
        ).tolist()
        n_kept = []
        for place, (row, draft, n) in enumerate(zip(rows, drafts, n_drafts, strict=True)):
            own = chosen[place * k : place * k + n]
            n_accepted = next((i for i, (a, b) in enumerate(zip(draft, own, strict=False)) if a != b), n)
            self._counts[row].note(n, n_accepted)
            n_kept.append(self._sampler.accept(row, draft[:n_accepted], logits[place, :n_accepted]))
        self._batch.advance([1 + n for n in n_kept])
        self._logits[list(rows)] = logits[range(len(rows)), n_kept]


def reused_layers(route: Route) -> int:
    """How many layers run before the first that a route skips."""
    return next((place for place, layer in enumerate(route.layers) if layer != place), len(route.layers))
