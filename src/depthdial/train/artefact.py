"""Artefacts of a run: a PEFT adapter or a model folder, its card, and the record of the run.

The card is written last, so that a folder with one is whole.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
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


def bring_weights(folder: Path, adapter_dtype: str) -> None:
    """Copy what the trainer has saved last up to `folder`, an adapter in `adapter_dtype`."""
    for file in sorted((folder / FINAL).iterdir()):
        if file.name == "adapter_model.safetensors":
            write_atomically(folder / file.name, functools.partial(_recast, file, adapter_dtype))
        elif file.name != "README.md":  # PEFT's own, an empty form
            write_atomically(folder / file.name, functools.partial(shutil.copyfile, file))


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
"""
