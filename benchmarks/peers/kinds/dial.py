"""Depthdial itself: full depth, a route, lossless, and the depths of the plot of time against quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import depthdial as dd
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, timed
from depthdial.engine.depth import Depth
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import forced_logits, right_padded
from depthdial.errors import InputError

_MOST_ROWS = 64


class Dial(HFPeer):
    """`dd.generate` at one depth.

    Attributes:
        depth: None for the subject's.
        prompt_depth: of the answers; scores are behind prompts of the same depth.
    """

    def __init__(
        self,
        name: str,
        depth: str | None,
        *,
        like: str | None = None,
        scored_as: str | None = None,
        prompt_depth: str = "full",
    ) -> None:
        self.name, self.like, self.scored_as = name, like, scored_as or name
        self.depth, self.prompt_depth = depth, prompt_depth
        self.what = f"dd.generate, depth={depth or 'the route'}"
        if self.prompt_depth == "route":
            self.what += ", prompt too"

    def why_absent(self, subject: Subject) -> str | None:
        try:
            Depth.parse(self._depth(subject), subject.model)
        except InputError as error:
            return f"This Depthdial has no depth {self._depth(subject)!r} for this model ({error})"
        return None

    def prepare(self, subject: Subject) -> None:
        super().prepare(subject)
        self.ends = Session.of(subject.model, subject.tokenizer).eos_token_ids
        self._subject = subject

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        found, seconds = timed(lambda: self._run([prompt.text for prompt in prompts], new_tokens))
        return Answers(tuple(tuple(answer.tokens) for answer in found), seconds, getattr(found[0], "speculation", "") or "")

    def logits(self, prompt: Prompt, continuation: Sequence[int]) -> torch.Tensor:
        session, route = Session.of(self.model, self.tokenizer), self._subject.route(self._depth(self._subject))
        prefilled = session.prefill_ids([prompt.ids], None if self.prompt_depth == "full" else route)
        tokens, mask = right_padded([continuation], session.pad_token_id, session.device)
        return forced_logits(session.model, route, prefilled, tokens, mask)[0].float()

    def forced(self, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Plain text is no answer to anything: all of it runs on the route."""
        ids = torch.tensor([[*before, *tokens[:-1]]])
        view = dd.view(self.model, self._subject.route(self._depth(self._subject)))
        with torch.inference_mode():
            return view(ids, logits_to_keep=len(tokens)).logits[0].float()

    def _depth(self, subject: Subject) -> str:
        return self.depth or subject.depth

    def _run(self, texts: list[str], new_tokens: int) -> list[Any]:
        return dd.generate(
            self.model,
            self.tokenizer,
            texts,
            depth=self._depth(self._subject),
            prompt_depth=self.prompt_depth,
            max_new_tokens=new_tokens,
            batch_size=len(texts),
            eos_token_id=None,
        )


class EngineDial(Dial):
    """The same through `dd.Engine`, which stays."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.what = self.what.replace("dd.generate", "dd.Engine.run")

    def why_absent(self, subject: Subject) -> str | None:
        if not hasattr(dd, "Engine"):
            return "This Depthdial has no dd.Engine: install a newer one."
        return super().why_absent(subject)

    def prepare(self, subject: Subject) -> None:
        super().prepare(subject)
        self._engine = dd.Engine(subject.model, subject.tokenizer, max_rows=_MOST_ROWS)

    def close(self) -> None:
        self._engine.close(cancel=True)

    def _run(self, texts: list[str], new_tokens: int) -> list[Any]:
        return self._engine.run(
            texts,
            depth=self._depth(self._subject),
            prompt_depth=self.prompt_depth,
            max_new_tokens=new_tokens,
            eos_token_id=None,
        )
