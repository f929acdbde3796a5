"""Some peers made again: their rows in the place of those that a run of all peers has left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.peers.peer import REFERENCE
from depthdial.errors import InputError

# Settings that two runs must share for their rows to stand side by side.
_SAME = ("model", "task", "depth", "depths", "prompts", "scored_prompts", "new_tokens", "threads", "rows", "with_quality")
_PARTS = ("settings", "rows", "quality", "layers_per_token")


def check_fits(document: Any, settings: Mapping[str, Any], names: Collection[str]) -> None:
    """InputError unless the peers `names` of a run with these settings can take their place in a `peers.json`."""
    if not isinstance(document, Mapping) or not all(part in document for part in _PARTS):
        raise InputError("What --into names is no peers.json: give one that python -m benchmarks.peers has written.")
    for name in _SAME:
        before, now = document["settings"].get(name), settings[name]
        if before != (list(now) if isinstance(now, Sequence) and not isinstance(now, str) else now):
            raise InputError(f"The run that --into names has {name} {before} and this one {now}: give the same.")
    unknown = sorted(set(names) - {row["peer"] for row in document["rows"]})
    if unknown:
        raise InputError(f"There is no row of {unknown[0]} in what --into names: run it beside all the others.")


def with_peers(document: Mapping[str, Any], later: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What `peers.json` holds, with the peers `names` of a later run, the reference aside, in the place of those there.

    Milliseconds in turns are the reference's in the document by the ratio to it in the later run's own rounds. `later`
    names, by peer, where the new rows come from.

    Raises:
        InputError: see `check_fits`.
    """
    names = [name for name in names if name != REFERENCE]
    check_fits(document, later["settings"], names)
    ms = {row["rows"]: row["ms_per_token"]["p50"] for row in document["rows"] if row["peer"] == REFERENCE}
    new = {(row["peer"], row["rows"]): row for row in later["rows"] if row["peer"] in names}
    turned = {cell: {**row, "ms_in_turns": ms[cell[1]] / row["over_reference"]["p50"]} for cell, row in new.items()}
    source = {name: later[name] for name in ("when", "versions", "hardware", "commit")}
    parts = {part: {**document[part], **_of(later[part], names)} for part in ("quality", "layers_per_token")}
    return {
        **document,
        **parts,
        "rows": [turned.get((row["peer"], row["rows"]), row) for row in document["rows"]],
        "later": {**document.get("later", {}), **dict.fromkeys(names, source)},
    }


def _of(part: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name in names}
