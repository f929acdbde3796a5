"""Where an adapter's training begins: from nothing, or from an adapter that an earlier run has trained on the same base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.adapter import CARD_FILE, AdapterCard, check_base
from depthdial.hf.load import resolve_adapter
from depthdial.hf.loaded import refusing
from depthdial.hf.trained import recorded_prompts
from depthdial.train.depth.settings import FinetuneSettings

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields of PEFT's that give the same matrices another meaning than a run's own have.
_OTHERWISE = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "modules_to_save")


@dataclass(frozen=True)
class Start:
    """The adapter that a run begins with, as it was when the command began.

    Attributes:
        weights: its matrices by name, on the CPU.
        sha256: of the file that they were in.
    """

    folder: Path
    card: AdapterCard
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, start_from: Path | str, model: Any, name: str, settings: FinetuneSettings, out: Path) -> Start:
        """Read an adapter's folder, or `elastic` for the one that ships.

        Args:
            model, name: the base, which has no adapter on it, and what it was loaded by.
            out: where the run's own adapter goes.

        Raises:
            InputError: if the run trains no adapter; if the folder is the run's own, holds no adapter of Depthdial's or a
                damaged one; if that one is for another base, another kind of prompts, or of another rank or scale.
        """
        if settings.method != "lora":
            raise InputError("An adapter to start from is for method='lora': leave it out, or train an adapter.")
        folder = resolve_adapter(start_from, name)
        if folder.resolve() == out.resolve():
            raise InputError(f"{out} is the adapter that the run starts from: choose another folder for its own.")
        if not (folder / CARD_FILE).is_file():
            raise InputError(f"{folder} has no card: start from an adapter that `depthdial finetune` made.")
        card = AdapterCard.load(folder)
        check_base(card, model, folder, name)
        if card.prompt_depth != settings.prompt_depth:
            raise InputError(
                f"The adapter {folder} was trained with --prompt-depth {card.prompt_depth}: a run goes on with the same."
            )
        _check_config(folder, settings)
        data = (folder / _WEIGHTS).read_bytes()
        with refusing(str(folder / _WEIGHTS), "is damaged"):
            from safetensors.torch import load

            weights = load(data)
        return cls(folder, card, weights, hashlib.sha256(data).hexdigest())

    @property
    def told(self) -> dict[str, Any]:
        """What the record of a run says of its start: the weights' sha256, and the response tokens they were trained on.

        None in place of a number that the card does not tell.
        """
        training, earlier = self.card.training, self.card.training.get("started_from")
        counts = [training.get("response_tokens"), earlier.get("response_tokens") if isinstance(earlier, Mapping) else 0]
        known = all(isinstance(count, int) for count in counts)
        return {"sha256": self.sha256, "response_tokens": sum(counts) if known else None}

    @property
    def prompts(self) -> frozenset[str]:
        """Hashes of the prompts that the adapter was trained on, which stay seen."""
        return recorded_prompts(self.card.training)

    def put_into(self, adapted: Any) -> None:
        """Give PEFT's wrapper `adapted` the adapter's weights; InputError where it adapts other modules."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if {name: value.shape for name, value in self.weights.items()} != {name: value.shape for name, value in own.items()}:
            raise InputError(
                f"The adapter {self.folder} is on other modules than this run trains: its routes run other layers. Start "
                "without it, or train routes that together run the same layers."
            )
        set_peft_model_state_dict(adapted, {name: value.to(own[name]) for name, value in self.weights.items()})


def _check_config(folder: Path, settings: FinetuneSettings) -> None:
    """InputError unless the adapter is a plain LoRA of the run's rank and scale."""
    known = read_json(folder / _CONFIG, "adapter")
    if not isinstance(known, dict):
        raise InputError(f"{folder / _CONFIG} is damaged: save the adapter again.")
    odd = next((name for name in _OTHERWISE if known.get(name)), None)
    if known.get("peft_type") != "LORA" or odd is not None:
        told = odd or f"peft_type {known.get('peft_type')}"
        raise InputError(f"The adapter {folder} is no plain LoRA ({told}): start from one that `depthdial finetune` made.")
    for name, option in (("r", "--rank"), ("lora_alpha", "--lora-alpha")):
        asked, given = getattr(settings.resolved, name), known.get(name)
        if given != asked:
            raise InputError(
                f"The adapter {folder} has {name} {given} and this run {asked:g}: a run goes on with the same, so "
                f"set {option} to that of the adapter."
            )
