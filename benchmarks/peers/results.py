"""Samples to rows: tokens a second and the ratio to the reference with their spread, and the share of equal answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.peer import REFERENCE, Peer
from benchmarks.peers.rounds import Sample

PERCENTILES = (20, 50, 80)


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile over rounds."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*(float(value) for value in np.percentile(values, PERCENTILES)))


def speed_rows(samples: Sequence[Sample], peers: Mapping[str, Peer]) -> list[dict[str, Any]]:
    """One row for each peer and number of rows, in the order of the peers.

    `ms_in_turns` is the reference's median by the ratio to it within rounds: what is compared across peers, of which some
    may have run in another hour than others.
    """
    by_cell: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        by_cell.setdefault((sample.peer, sample.rows), []).append(sample)
    order = {name: i for i, name in enumerate(peers)}
    found = []
    for name, rows in sorted((c for c in by_cell if c[0] in order), key=lambda cell: (cell[1], order[cell[0]])):
        own, reference = by_cell[name, rows], by_cell.get((REFERENCE, rows), [])
        like = peers[name].like
        found.append(
            {
                "peer": name,
                "rows": rows,
                "n_rounds": len(own),
                "tokens_per_sec": vars(Spread.of([s.answers.n_tokens / s.answers.seconds for s in own])),
                "ms_per_token": vars(Spread.of([1e3 * s.answers.seconds / s.answers.n_tokens for s in own])),
                "over_reference": (ratio := _ratio(own, reference)),
                "ms_in_turns": None if ratio is None else _median_ms(reference) / ratio["p50"],
                "like": like,
                "equal_answers": None if like is None else _equal(own, by_cell.get((like, rows), [])),
                "equal_to_full": _equal(own, reference),
                "note": own[-1].answers.note,
            }
        )
    return found


def _median_ms(samples: Sequence[Sample]) -> float:
    return float(np.median([1e3 * s.answers.seconds / s.answers.n_tokens for s in samples]))


def _ratio(own: Sequence[Sample], reference: Sequence[Sample]) -> dict[str, float] | None:
    """Tokens a second over the reference's, within a round of a session."""
    beside = {(s.session, s.round): s.answers.n_tokens / s.answers.seconds for s in reference}
    ratios = [
        s.answers.n_tokens / s.answers.seconds / beside[s.session, s.round] for s in own if (s.session, s.round) in beside
    ]
    return vars(Spread.of(ratios)) if ratios else None


def _equal(own: Sequence[Sample], other: Sequence[Sample]) -> float | None:
    """The share of prompts with the very same tokens; rounds of a number have the same prompts in every session."""
    beside = {s.round: s.answers.tokens for s in other}
    pairs = [
        mine[: len(theirs)] == theirs[: len(mine)] and len(mine) > 0
        for s in own
        if s.round in beside
        for mine, theirs in zip(s.answers.tokens, beside[s.round], strict=True)
    ]
    return sum(pairs) / len(pairs) if pairs else None
