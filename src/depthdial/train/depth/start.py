"""Where an adapter's training begins: from nothing, or from an adapter that an earlier run has trained on the same base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.adapter import CARD_FILE, AdapterCard, check_base
from depthdial.hf.load import resolve_adapter
from depthdial.train.depth.settings import FinetuneSettings

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Start:
    """The adapter that a run begins with."""

    folder: Path
    card: AdapterCard

    @classmethod
    def of(cls, start_from: Path | str, model: Any, name: str, settings: FinetuneSettings) -> Start:
        """Read an adapter's folder, or `elastic` for the one that ships.

        Raises:
            InputError: if it is no adapter of Depthdial's, is for another base, or has another rank or scale than the run.
        """
        if settings.method != "lora":
            raise InputError("An adapter to start from is for method='lora': leave it out, or train an adapter.")
        folder = resolve_adapter(str(start_from), name)
        if not (folder / CARD_FILE).is_file():
            raise InputError(f"{folder} has no card: start from an adapter that `depthdial finetune` made.")
        start = cls(folder, AdapterCard.load(folder))
        check_base(start.card, model, folder, name)
        start._check_rank(settings)
        return start

    def _check_rank(self, settings: FinetuneSettings) -> None:
        known = read_json(self.folder / "adapter_config.json", "adapter")
        for field, option in (("r", "--rank"), ("lora_alpha", "--lora-alpha")):
            asked = getattr(settings.resolved, field)
            if known.get(field) != asked:
                raise InputError(
                    f"The adapter {self.folder} has {field} {known.get(field)} and this run {asked:g}: a run goes on with "
                    f"the same, so set {option} {known.get(field)}."
                )

    @property
    def told(self) -> dict[str, Any]:
        """What the record of a run says of its start: the weights' sha256, and the response tokens they were trained on."""
        training = self.card.training
        before = training.get("started_from", {}).get("response_tokens", 0)
        weights = hashlib.sha256((self.folder / _WEIGHTS).read_bytes()).hexdigest()
        return {"sha256": weights, "response_tokens": before + training.get("response_tokens", 0)}

    @property
    def prompts(self) -> frozenset[str]:
        """Hashes of the prompts that the adapter was trained on, which stay seen."""
        data: Mapping[str, Any] = self.card.training.get("data", {})
        return frozenset(data.get("prompts", ()))

    def put_into(self, adapted: Any) -> None:
        """Give PEFT's wrapper `adapted` the adapter's weights; InputError where it adapts other modules."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        found = load_file(self.folder / _WEIGHTS)
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in own.items()}:
            raise InputError(
                f"The adapter {self.folder} is on other modules than this run trains: its routes run other layers. Start "
                "without it, or train routes that together run the same layers."
            )
        set_peft_model_state_dict(adapted, {name: value.to(own[name]) for name, value in found.items()})
