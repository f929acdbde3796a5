"""transformers' own `generate`, and what its variants share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.peers.peer import REFERENCE, Answers, Peer, Prompt, Subject, timed
from depthdial.engine.prefill import left_padded


class HFPeer(Peer):
    """A causal language model of transformers that answers with `generate`.

    Attributes:
        model: what runs, once prepared.
        options: of `generate`.
    """

    model: Any
    tokenizer: Any
    ends: tuple[int, ...] = ()

    def prepare(self, subject: Subject) -> None:
        self.tokenizer = subject.tokenizer
        self.ends = (subject.tokenizer.eos_token_id,)
        self.model = self.made(subject)

    def made(self, subject: Subject) -> Any:
        """The model that runs."""
        return subject.model

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        """Arguments of `generate` beside the usual ones, for prompts of a width."""
        return {}

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        pad = self.tokenizer.pad_token_id or 0
        ids, mask = left_padded([prompt.ids for prompt in prompts], pad, "cpu")
        asked = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": pad}
        asked |= self.options(ids.shape[1], new_tokens)
        with torch.inference_mode():
            out, seconds = timed(lambda: self.model.generate(ids, attention_mask=mask, **asked))
        return Answers(tuple(map(tuple, out[:, ids.shape[1] :].tolist())), seconds)

    def text_of(self, tokens: Sequence[int]) -> str:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return self.tokenizer.decode(tokens[:end], skip_special_tokens=True)

    def forced(self, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """(n_tokens, vocabulary): what predicts each token behind others."""
        ids = torch.tensor([[*before, *tokens[:-1]]])
        with torch.inference_mode():
            return self.model(ids, logits_to_keep=len(tokens)).logits[0].float()

    def logits(self, prompt: Prompt, continuation: Sequence[int]) -> torch.Tensor | None:
        return self.forced(prompt.ids, continuation)

    def text_logits(self, context: str, rest: str) -> tuple[torch.Tensor, Sequence[int]]:
        before = self.tokenizer(context)["input_ids"]
        tokens = self.tokenizer(rest, add_special_tokens=False)["input_ids"]
        return self.forced(before, tokens), tokens


class Eager(HFPeer):
    name = REFERENCE
    what = "transformers generate, dynamic cache"
    like = None
