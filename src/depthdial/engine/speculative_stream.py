"""Lossless self-speculation: some layers of a model draft tokens, and all of them check the drafts in one pass.

One set of keys and values. A draft writes those of its route's layers behind a row's length; the pass that checks runs every
layer over the same places and overwrites them; and a row's length then grows by what it keeps, so that rows of one batch
accept as many tokens as each can. Layers before the first that the route skips give the same states both times and are not
run again (LayerSkip, arXiv 2404.16710, section 4.3).

A token is drafted as the plain token would be chosen from the draft's logits, by the same processors and the same counted
draw, and kept where the full model's logits choose it too. So answers are the plain ones, token by token, also sampled ones
for a seed, whatever was drafted, in whichever batch and rounds: their distribution is the full model's by construction.
By rejection sampling (arXiv 2211.17192; `engine.rejection`) more drafts are accepted at a temperature, from the same
distribution; but then an answer depends on where rounds begin, and so on how fast the machine was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.draft_length import PLAIN, DraftLength, Offer, Setting
from depthdial.engine.lookup import Lookup
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.row_stream import RowStream
from depthdial.engine.sampler import Sampler
from depthdial.engine.speculation import LOOKUP, ROUTE, Counts, Drafting, kind_of_match, widest
from depthdial.engine.walk import Prefix, Walk
from depthdial.hf.facts import ModelFacts

_MOST_DRAFT_TOKENS = 8


@dataclass(frozen=True)
class Drafts:
    """What was drafted in a round.

    Attributes:
        tokens: of each row, of one length.
        n_drafted: how many of them count, for each row.
        prefix: states that the check need not compute again.
        q: (n_rows, n_tokens, vocabulary) probabilities that they were drawn with; None for tokens that were not drawn.
    """

    tokens: Sequence[Sequence[int]]
    n_drafted: Sequence[int]
    prefix: Prefix | None = None
    q: torch.Tensor | None = None


class SpeculativeStream(RowStream):
    """Rows of full depth of which a step may bring several tokens: those that were drafted and are the model's own.

    Without drafts a step is `RowStream`'s own.

    Args:
        sampler: of these rows; accepted tokens are added to its answers.
        drafting: what drafts, and where it is told how that went.
    """

    def __init__(self, model: Any, prefilled: Prefill, max_new_tokens: int, sampler: Sampler, drafting: Drafting) -> None:
        n_rows = prefilled.n_sequences
        super().__init__(model, [prefilled.route] * n_rows, prefilled, max_new_tokens)
        self._sampler, self._drafting = sampler, drafting
        self._times, self._length = drafting.learned.times, DraftLength(drafting.learned)
        drafting.length = self._length
        self._context_tokens = ModelFacts.of(model).context
        self._draft_walk = None if drafting.model is None else Walk(drafting.model)
        self._layers = None if drafting.route is None else frozenset(drafting.route.layers)
        self._n_layers = len(prefilled.route)
        self._rejects = drafting.rejects and not sampler.is_greedy
        self._device = prefilled.input_ids.device
        drafting.counts = self._counts = [Counts() for _ in range(n_rows)]
        self._lookups: list[Lookup] = []
        if drafting.lookup:
            pairs = zip(prefilled.input_ids, prefilled.attention_mask.bool(), strict=True)
            self._lookups = [Lookup(ids[mask].tolist()) for ids, mask in pairs]
        self._n_prompt = [len(lookup) for lookup in self._lookups]

    def step(self, tokens: torch.Tensor, is_over: torch.Tensor) -> None:
        self._leave(is_over)
        rows = self._rows
        if not rows:
            return
        offers, copies = self._offers(rows)
        setting = self._chosen(len(rows), offers)
        if setting == PLAIN:
            seconds = self._timed()
            self._run(tokens)
            self._length.note_step(len(rows), seconds())
            for row in rows:
                self._counts[row].steps += 1
                self._counts[row].layers_run += self._n_layers
            return
        offer, pending = offers[setting.source], tokens[rows]
        n_drafted = [min(setting.draft_tokens, n) for n in offer.n_tokens]
        if setting.source == LOOKUP:
            drafts = Drafts(widest([draft for draft, _ in copies], max(n_drafted)), n_drafted)
        else:
            drafts = self._drafted(pending, rows, n_drafted)
        n_accepted = self._check(pending, rows, drafts)
        self._length.note_round(len(rows), offer, max(n_drafted), n_drafted, n_accepted)

    def _timed(self) -> Callable[[], float | None]:
        """Gives the seconds since now; None if a graph was recorded meanwhile, which is done once."""
        started, n_recorded = clock_sec(self._device), self._batch.n_recorded
        return lambda: clock_sec(self._device) - started if self._batch.n_recorded == n_recorded else None

    def _room(self, rows: Sequence[int]) -> list[int]:
        """How many drafted tokens each row can keep: the loop chooses one more behind them.

        All rows are run with as many tokens as the longest draft has, so the context must have room for that of each.
        """
        most = self._drafting.draft_tokens or _MOST_DRAFT_TOKENS
        if self._context_tokens is not None:
            most = min(most, self._context_tokens - 1 - max(self._batch.lengths))
        rooms = [most if (left := self._sampler.room(row)) is None else min(most, left - 1) for row in rows]
        return [max(room, 0) for room in rooms]

    def _copies(self, rows: Sequence[int], room: Sequence[int]) -> list[tuple[list[int], int]]:
        if not self._lookups:
            return []
        for row in rows:
            lookup = self._lookups[row]
            lookup.extend(self._sampler.answer(row)[0][len(lookup) - self._n_prompt[row] :])
        return [self._lookups[row].draft(n) for row, n in zip(rows, room, strict=True)]

    def _offers(self, rows: Sequence[int]) -> tuple[dict[str, Offer], list[tuple[list[int], int]]]:
        """What can be drafted in this step, and the copies among that."""
        drafts = self._layers is not None and not self._length.rests
        if not drafts and not self._lookups:
            return {}, []
        room, offers = self._room(rows), {}
        if drafts:
            offers[ROUTE] = Offer([ROUTE] * len(room), room)
        copies = self._copies(rows, room)
        if copies:
            kinds, n_tokens = [kind_of_match(length) for _, length in copies], [len(draft) for draft, _ in copies]
            offers[LOOKUP] = Offer(kinds, n_tokens, is_free=True)
        return {name: offer for name, offer in offers.items() if any(offer.n_tokens)}, copies

    def _chosen(self, n_rows: int, offers: dict[str, Offer]) -> Setting:
        if not offers:
            return PLAIN
        if self._drafting.draft_tokens is None:
            return self._length.next(n_rows, offers)
        return Setting(LOOKUP if LOOKUP in offers else ROUTE, self._drafting.draft_tokens)

    def _drafted(self, pending: torch.Tensor, rows: Sequence[int], n_drafted: Sequence[int]) -> Drafts:
        """Drafts of the route."""
        prefix = Prefix(self._drafting.reused_layers) if self._drafting.reused_layers else None
        drafts: list[list[int]] = [[] for _ in rows]
        q: list[torch.Tensor] = []
        seconds = self._timed()
        for place in range(max(n_drafted)):
            passed = self._batch.run(pending[:, None], ahead=place, layers=self._layers, keep=prefix, walk=self._draft_walk)
            logits = passed[:, -1]
            if self._rejects:
                pending, drawn_with = self._sampler.draft(rows, drafts, logits)
                q.append(drawn_with)
            else:
                pending = self._sampler.tokens_behind(rows, drafts, logits)
            for row, draft, token in zip(rows, drafts, pending.tolist(), strict=True):
                draft.append(token)
                self._counts[row].layers_run += len(self._layers or ())
        if (sec := seconds()) is not None:
            self._times.note("draft", len(rows), sec / max(n_drafted))
        return Drafts(drafts, n_drafted, prefix, torch.stack(q, dim=1) if q else None)

    def _check(self, pending: torch.Tensor, rows: Sequence[int], drafts: Drafts) -> list[int]:
        """Run every layer over drafts and keep what the full model would say too; how many tokens of each row are right."""
        seconds, k = self._timed(), len(drafts.tokens[0])
        tokens = torch.cat([pending[:, None], torch.tensor(drafts.tokens, device=pending.device)], dim=1)
        logits = self._batch.run(tokens, resume=drafts.prefix).float()
        if self._rejects:
            n_accepted = self._sampler.verify(rows, drafts.tokens, drafts.n_drafted, logits, drafts.q)
        else:
            n_accepted = self._chosen_too(rows, drafts, logits)
        reused = 0 if drafts.prefix is None else drafts.prefix.n_layers * k
        n_kept = []
        for place, (row, n) in enumerate(zip(rows, n_accepted, strict=True)):
            self._counts[row].note(drafts.n_drafted[place], n)
            self._counts[row].layers_run += self._n_layers * (k + 1) - reused
            # What ends an answer cuts it, whatever else was right.
            n_kept.append(self._sampler.accept(row, drafts.tokens[place][:n], logits[place, :n]))
        self._batch.advance([1 + n for n in n_kept])
        self._logits[list(rows)] = logits[range(len(rows)), n_kept]
        if (sec := seconds()) is not None:
            self._times.note("check", len(rows), sec, k + 1)
        return n_accepted

    def _chosen_too(self, rows: Sequence[int], drafts: Drafts, logits: torch.Tensor) -> list[int]:
        """How many tokens of each draft plain decoding would choose, by the same draws."""
        k = len(drafts.tokens[0])
        behind = [draft[:place] for draft in drafts.tokens for place in range(k)]
        places = [row for row in rows for _ in range(k)]
        chosen = self._sampler.tokens_behind(places, behind, logits[:, :k].flatten(0, 1)).view(-1, k).tolist()
        return [
            next((i for i in range(n) if draft[i] != own[i]), n)
            for draft, own, n in zip(drafts.tokens, chosen, drafts.n_drafted, strict=True)
        ]
