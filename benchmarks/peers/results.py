"""Samples to rows: tokens a second and the ratio to the reference with their spread, and the share of equal answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.peer import REFERENCE, Peer
from benchmarks.peers.rounds import Sample
from depthdial.errors import InputError

PERCENTILES = (20, 50, 80)
# Settings that two runs must share for their rows to stand side by side.
_SAME = ("model", "task", "depth", "depths", "prompts", "scored_prompts", "new_tokens", "threads", "rows")


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


def with_peers(document: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """What `peers.json` holds, with the peers of a later run, the reference aside, in the place of what it said of them.

    Milliseconds are the reference's in the document by the ratio to it in the later run's own rounds. `later` names, by
    peer, where the new rows come from.

    Raises:
        InputError: if the later run answered other prompts, or others at once.
    """
    for name in _SAME:
        if document["settings"][name] != later["settings"][name]:
            raise InputError(f"The later run has {name} {later['settings'][name]}, not {document['settings'][name]}.")
    ms = {row["rows"]: row["ms_per_token"]["p50"] for row in document["rows"] if row["peer"] == REFERENCE}
    new = {
        (row["peer"], row["rows"]): {**row, "ms_in_turns": ms[row["rows"]] / row["over_reference"]["p50"]}
        for row in later["rows"]
        if row["peer"] != REFERENCE
    }
    unknown = new.keys() - {(row["peer"], row["rows"]) for row in document["rows"]}
    if unknown:
        raise InputError(f"There is no row of {min(unknown)[0]} yet: it needs a run beside all the others.")
    rows = [new.get((row["peer"], row["rows"]), row) for row in document["rows"]]
    names = dict.fromkeys(name for name, _ in new)
    source = {name: later[name] for name in ("when", "versions", "hardware", "commit")}
    quality = {name: scores for name, scores in later["quality"].items() if name in names}
    return {
        **document,
        "rows": rows,
        "quality": {**document["quality"], **quality},
        "later": {**document.get("later", {}), **dict.fromkeys(names, source)},
    }


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
