"""Depthdial itself: full depth, a route, lossless, and the depths of the plot of time against quality."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

import depthdial as dd
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, timed
from depthdial.engine.depth import Depth, RouteDepth
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import forced_logits, right_padded
from depthdial.errors import InputError
from depthdial.hf.adapter import merged, shipped_adapter
from depthdial.routes import Route

LOSSLESS = "lossless"
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
        self.ends = Session.of(self.model, self.tokenizer).eos_token_ids
        depth = self._depth(subject)
        self._at: Any = depth if depth == LOSSLESS else self.route(subject, depth)

    def route(self, subject: Subject, depth: str) -> Route:
        """What a depth means."""
        return subject.route(depth)

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        found, seconds = timed(lambda: self._run([prompt.text for prompt in prompts], new_tokens))
        return Answers(
            tuple(tuple(answer.tokens) for answer in found), seconds, str(getattr(found[0], "speculation", None) or "")
        )

    def logits(self, prompt: Prompt, continuation: Sequence[int]) -> torch.Tensor:
        session = Session.of(self.model, self.tokenizer)
        prefilled = session.prefill_ids([prompt.ids], None if self.prompt_depth == "full" else self._at)
        tokens, mask = right_padded([continuation], session.pad_token_id, session.device)
        return forced_logits(session.model, self._at, prefilled, tokens, mask)[0].float()

    def forced(self, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Plain text is no answer to anything: all of it runs on the route."""
        ids = torch.tensor([[*before, *tokens[:-1]]])
        view = dd.view(self.model, self._at)
        with torch.inference_mode():
            return view(ids, logits_to_keep=len(tokens)).logits[0].float()

    def _depth(self, subject: Subject) -> str:
        return self.depth or subject.depth

    def _run(self, texts: list[str], new_tokens: int) -> list[Any]:
        return dd.generate(
            self.model,
            self.tokenizer,
            texts,
            depth=self._at,
            prompt_depth=self.prompt_depth,
            max_new_tokens=new_tokens,
            batch_size=len(texts),
            eos_token_id=None,
        )


class Elastic(Dial):
    """With the elastic adapter that ships for the built-in model, merged into a copy of its weights."""

    has_layers = False  # of a model of its own

    def __init__(self, name: str, depth: str) -> None:
        super().__init__(name, depth)
        self.what += ", with the elastic adapter"

    def why_absent(self, subject: Subject) -> str | None:
        try:
            shipped_adapter(subject.name)
        except InputError as error:
            return str(error)
        return None

    def made(self, subject: Subject) -> Any:
        adapted, _ = dd.load(subject.name, dtype="float32", device="cpu", adapter="elastic")
        found = Depth.parse(self.depth, adapted)
        assert isinstance(found, RouteDepth) and isinstance(found.route, Route)
        self._route = found.route
        return merged(adapted)

    def route(self, subject: Subject, depth: str) -> Route:
        return self._route


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
        self._engine = dd.Engine(self.model, subject.tokenizer, max_rows=_MOST_ROWS)

    def close(self) -> None:
        self._engine.close(cancel=True)

    def _run(self, texts: list[str], new_tokens: int) -> list[Any]:
        return self._engine.run(
            texts,
            depth=self._at,
            prompt_depth=self.prompt_depth,
            max_new_tokens=new_tokens,
            eos_token_id=None,
        )


class EngineBF16(EngineDial):
    """The same with the weights in bfloat16: fewer layers and fewer bits go together."""

    has_layers = False  # of a model of its own

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.what += ", in bfloat16"

    def made(self, subject: Subject) -> Any:
        return copy.deepcopy(subject.model).to(torch.bfloat16)
