"""tide-inference: routers after every fourth layer say where a token leaves, with every layer run all the same."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from typing import Any

import torch

import depthdial as dd
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, missing_package, timed
from depthdial.files import write_text


class Tide(HFPeer):
    """
    Attributes:
        threshold: of a router, above which a token leaves; None for the package's own.
    """

    name = "tide"
    what = "tide-inference, routers calibrated on the built-in rows"
    like = None
    scored_as = None
    most_rows = 1  # it takes no attention mask, and leaves only where all rows would
    threshold: float | None = None

    def why_absent(self, subject: Subject) -> str | None:
        return missing_package("TIDE", "tide-inference")

    def made(self, subject: Subject) -> Any:
        """A copy: it leaves hooks on the layers, with which no peer on the same model would run compiled ones."""
        return copy.deepcopy(subject.model)

    def prepare(self, subject: Subject) -> None:
        super().prepare(subject)
        from TIDE import TIDE, TIDEConfig, calibrate

        logging.getLogger("TIDE").setLevel(logging.WARNING)
        routers = subject.folder / "tide-routers.pt"
        if not routers.exists():
            rows = [e for e in dd.task("builtin", split="calibration").examples if e.reference]
            texts = [f"{e.instruction}\n{e.document}\n{e.reference}" for e in rows]
            # It reads texts of 100 characters or more, from a data set by name.
            folder = subject.folder / "tide-texts"
            lines = [json.dumps({"text": text + "\n" + texts[i - 1]}) for i, text in enumerate(texts)]
            write_text(folder / "train.jsonl", "\n".join(lines) + "\n")
            config = TIDEConfig(calibration_samples=len(texts), calibration_dataset=str(folder))
            part = routers.with_suffix(".part")
            calibrate(self.model, subject.tokenizer, config=config, save_path=str(part), device="cpu")
            part.replace(routers)
        config = TIDEConfig() if self.threshold is None else TIDEConfig(exit_threshold=self.threshold)
        # Its own default never lets a token leave before layer 8.
        config.min_layers = min(config.min_layers, subject.n_layers // 2)
        self._runtime: Any = TIDE(self.model, router_path=routers, config=config)

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        (prompt,) = prompts
        ids = torch.tensor([prompt.ids])
        out, seconds = timed(lambda: self._runtime.generate(ids, max_new_tokens=new_tokens, temperature=0))
        stats = self._runtime.last_stats
        left = ", ".join(f"{n} after layer {layer + 1}" for layer, n in sorted(stats.exits_per_layer.items())) or "none"
        return Answers(
            (tuple(out[0, ids.shape[1] :].tolist()),), seconds, f"of {stats.total_tokens} tokens left early: {left}"
        )


class TideAlways(Tide):
    name = "tide-always"
    what = "tide-inference, every token leaves at its first router"
    threshold = 0.0
