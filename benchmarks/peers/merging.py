"""Some peers scored again: their quality in the place of what a run of all peers has left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.peers.peer import REFERENCE
from depthdial.errors import InputError

# Settings that two runs must share for their scores to stand side by side.
_SAME = ("model", "task", "depth", "depths", "prompts", "scored_prompts", "new_tokens", "with_quality")
_PARTS = ("settings", "quality")


def check_fits(document: Any, settings: Mapping[str, Any], names: Collection[str]) -> None:
    """InputError unless the peers `names` of a run with these settings can be scored beside those of a `peers.json`."""
    if not isinstance(document, Mapping) or not all(part in document for part in _PARTS):
        raise InputError("What --scores-into names is no peers.json: give one that python -m benchmarks.peers has written.")
    for name in _SAME:
        before, now = document["settings"].get(name), settings[name]
        if before != (list(now) if isinstance(now, Sequence) and not isinstance(now, str) else now):
            raise InputError(f"The run that --scores-into names has {name} {before} and this one {now}: give the same.")
    unknown = sorted(set(names) - {REFERENCE, *document["quality"]})
    if unknown:
        raise InputError(f"What --scores-into names has no scores of {unknown[0]}: run it beside all the others.")


def with_scores(document: Mapping[str, Any], later: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What `peers.json` holds, with the quality of the peers `names` from a later run, the reference aside.

    Times stay: those of other weights of the same sizes are the same, and another machine's do not stand beside these.
    `later` names, by peer, where the scores come from. Call `check_fits` first, before the later run.
    """
    names = [name for name in names if name in later["quality"] and name != REFERENCE]
    source = {name: later[name] for name in ("when", "versions", "hardware", "commit")}
    return {
        **document,
        "quality": {**document["quality"], **{name: later["quality"][name] for name in names}},
        "later": {**document.get("later", {}), **dict.fromkeys(names, source)},
    }
