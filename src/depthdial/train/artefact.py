"""Artefacts of a run: a PEFT adapter or a model folder, its card, and the record of the run.

The card is written last, so that a folder with one is whole.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.files import write_atomically, write_text
from depthdial.hf.adapter import AdapterCard
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from depthdial.train.depth.settings import FinetuneSettings

RECORD_FILE = "training.json"
# How prompts ran in training, and what that makes the weights for.
_TRAINED = {
    "full": "Trained with prompts that run every layer: run it so too (the default of every verb). A saved folder of a "
    "route runs prompts on the route, which these weights were not trained for.",
    "route": "Trained with prompts that run the route, as a saved folder of the route runs them: run it with "
    "`--prompt-depth route`.",
}
# Where a run keeps its checkpoints, and in the end its final weights, within its folder.
CHECKPOINTS = "checkpoints"
FINAL = f"{CHECKPOINTS}/final"
# Where a run that goes on keeps the adapter, or the model, of its last checkpoint alone.
LATEST = "latest"
# Beside the weights in a checkpoint.
_OF_TRAINER = ("optimizer", "scheduler", "rng_state", "scaler", "trainer_state", "README.md")


def bring_weights(saved: Path, folder: Path, adapter_dtype: str) -> None:
    """Bring the weights that the trainer has saved in one folder into another, those of an adapter in `adapter_dtype`."""
    for file in sorted(saved.iterdir()):
        if file.name == "adapter_model.safetensors":
            write_atomically(folder / file.name, functools.partial(_recast, file, adapter_dtype))
        elif file.is_file() and not file.name.startswith(_OF_TRAINER):  # the README is PEFT's own, an empty form
            write_atomically(folder / file.name, functools.partial(_share, file))


def leave_latest(folder: Path, checkpoint: Path, adapter_dtype: str, complete: Callable[[Path], object]) -> None:
    """Make `folder/latest` the adapter or model of a checkpoint, without what only a training needs.

    A reader finds the one before it or this one, whenever the process is killed: a first one comes by one rename, a later
    one file by file, of which only the weights, the record and the card differ.

    Args:
        complete: writes what belongs beside the weights into a folder.
    """
    stage, latest = folder / CHECKPOINTS / "latest.part", folder / LATEST
    shutil.rmtree(stage, ignore_errors=True)
    bring_weights(checkpoint, stage, adapter_dtype)
    complete(stage)
    if not latest.exists():
        stage.rename(latest)
        return
    for file in sorted(stage.iterdir()):
        file.replace(latest / file.name)
    stage.rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Remove what a run keeps until it has ended."""
    for name in (CHECKPOINTS, LATEST):
        shutil.rmtree(folder / name, ignore_errors=True)


def _share(source: Path, target: Path) -> None:
    """The same file under another name where the disk can do that, else a copy: weights of whole models are large."""
    try:
        target.unlink()
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _recast(source: Path, dtype: str, target: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in load_file(source).items()}
    save_file(tensors, target, metadata={"format": "pt"})


def save_card(
    folder: Path,
    identity: ModelIdentity,
    routes: Sequence[Route],
    settings: FinetuneSettings,
    record: Mapping[str, Any],
) -> None:
    """The page and the card of an adapter, or of a model that was trained whole."""
    card = AdapterCard(
        kind="elastic" if len(routes) > 1 else "specialist",
        base_name=identity.name,
        base_weights_hash=identity.weights_hash,
        base_dtype=identity.dtype,
        n_layers=routes[0].n_layers,
        prompt_depth=settings.prompt_depth,
        routes=tuple(routes),
        training={name: value for name, value in record.items() if name != "history"},
    )
    write_text(folder / "README.md", _page(card, settings, record))
    card.save(folder)


def _page(card: AdapterCard, settings: FinetuneSettings, record: Mapping[str, Any]) -> str:
    what = "One set of weights for several depths" if card.kind == "elastic" else "Weights for one depth"
    how = "load it as the model" if settings.method == "full" else f'dd.load("{card.base_name}", adapter=THIS_FOLDER)'
    tokens = record["response_tokens_by_route"]
    rows = "\n".join(f"| {r.name} | {len(r)} | {r} | {tokens[r.name]:,} |" for r in card.routes)
    data = record["data"]
    return f"""# {what} of {card.base_name}

Made by Depthdial: {how}.

{_TRAINED[settings.prompt_depth]}

| route | layers run | layers | response tokens trained on |
| --- | ---: | --- | ---: |
{rows}

Drawn from {data["rows"]:,} rows of {data["task"]} ({data["split"]}), answers: {settings.answers}; {record["steps"]:,} steps
in {record["train_sec"]:,.0f} s on {record["hardware"]}, seed {settings.seed}. Settings: depthdial.json.
{_beginning(record)}{_ending(record)}"""


def _beginning(record: Mapping[str, Any]) -> str:
    if "started_from" not in record:
        return ""
    before = record["started_from"]["response_tokens"]
    told = "an unknown number of" if before is None else f"{before:,}"
    return f"Before, the weights had {told} response tokens in an earlier run.\n"


def _ending(record: Mapping[str, Any]) -> str:
    if record["ended_by"] == "steps":
        return ""
    by = {"time": "Its time budget ended the run", "checkpoint": "A checkpoint of a run that had not ended"}
    return f"{by[record['ended_by']]}, of {record['scheduled_steps']:,} scheduled steps.\n"
