"""The rows that a model's weights, or the adapter on it, were trained on: what it may not be judged by.

Whoever trains keeps the hashes of the prompts (`data.leakage.prompt_hash`) in the record of the run, which the folder's
card takes along; a folder from before, or of others, says nothing and is taken as it is. Loading puts them on the model,
where views find them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.architectures import unwrap
from depthdial.hf.untouched import has_adapters_on

# On the model inside PEFT's wrapper, from where views take them along: of its own weights, and of the adapter on it.
_WEIGHTS, _ADAPTER = "depthdial_trained_on", "depthdial_adapter_trained_on"
# The files of a folder that carry the record of a training, and under which name.
_RECORDS = (("depthdial.json", "training"), ("gates.json", "about"), ("depthdial_export.json", "training"))


def recorded_prompts(record: Any) -> frozenset[str]:
    """Hashes of the prompts in a training's record (`record["data"]["prompts"]`); none where it does not say."""
    try:
        prompts = record["data"]["prompts"]
        return frozenset(one for one in prompts if isinstance(one, str) and not isinstance(prompts, str))
    except (KeyError, TypeError):
        return frozenset()


def prompts_of_folder(folder: Path) -> frozenset[str]:
    """Hashes of the prompts that the adapter, gates or model in a folder was trained on, where it says so."""
    found: frozenset[str] = frozenset()
    for file, part in _RECORDS:
        # Whoever needs the file itself says what is wrong with it.
        with suppress(InputError, KeyError, TypeError):
            found |= recorded_prompts(read_json(folder / file, "training record")[part])
    return found


def note_training(model: Any, prompts: Iterable[str], *, of_adapter: bool = False) -> None:
    """Have `trained_on` find prompts on a model, PEFT-wrapped or not, and on the views made of it from now on."""
    held, name = unwrap(model).__dict__, _ADAPTER if of_adapter else _WEIGHTS
    found = frozenset(prompts) | held.get(name, frozenset())
    if found:
        held[name] = found


def note_merging(model: Any) -> None:
    """What the adapter was trained on is now what the weights themselves were."""
    note_training(model, unwrap(model).__dict__.pop(_ADAPTER, ()))


def trained_on(model: Any) -> dict[str, frozenset[str]]:
    """Hashes of the prompts that a model was trained on, by what they were used for; only what is known.

    Those of an adapter count as long as it is on.
    """
    held = unwrap(model).__dict__
    known = {"to train the model": held.get(_WEIGHTS)}
    if held.get(_ADAPTER) and has_adapters_on(model):
        known["to train the adapter"] = held[_ADAPTER]
    return {purpose: prompts for purpose, prompts in known.items() if prompts}
