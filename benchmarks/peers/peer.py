"""What a peer is: a way to answer prompts that can be absent, prepared once, and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import depthdial as dd
from depthdial.engine.depth import Depth
from depthdial.hf.architectures import count_layers
from depthdial.routes import Route

REFERENCE = "hf-eager"  # the full model under transformers, which all are held against


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what was asked, for peers with a tokenizer of their own.
        ids: its tokens in the subject's template.
        reference: an answer to compare with; None if there is none.
    """

    text: str
    ids: tuple[int, ...]
    reference: str | None = None


@dataclass(frozen=True)
class Answers:
    """What a peer generated.

    Attributes:
        tokens: of each prompt, in order.
        seconds: from the prompts' ids to the last token.
        note: what else it says of this run, such as how often a draft was accepted.
    """

    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    note: str = ""

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.tokens))


@dataclass(frozen=True)
class Subject:
    """The model that all peers run.

    Attributes:
        name: what `dd.load` takes.
        depth: the dialled depth that shallow peers run at, as `dd.generate` takes it.
        folder: for files that peers make once (converted weights, calibrated routers).
        threads: of the processor.
        given: the model and its tokenizer, where the caller has them; otherwise they are loaded in fp32.
    """

    name: str
    depth: str
    folder: Path
    threads: int = 2
    given: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        model, tokenizer = self.given or dd.load(self.name, dtype="float32", device="cpu")
        # Every peer answers with as many tokens as it is asked for.
        model.generation_config.eos_token_id = None
        return model, tokenizer

    @property
    def model(self) -> Any:
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        return self.loaded[1]

    @property
    def n_layers(self) -> int:
        return count_layers(self.model)

    def route(self, depth: str | None = None) -> Route:
        """The route that a depth (default: the subject's) means."""
        found = getattr(Depth.parse(depth or self.depth, self.model), "route", None)
        assert isinstance(found, Route), f"{depth or self.depth!r} is no fixed route"
        return found


class Peer(ABC):
    """A way to answer prompts.

    Attributes:
        name: in rows and on the command line.
        what: for the table, in some words.
        like: the peer whose greedy answers it must give, token for token; None where it may differ.
        most_rows: the largest batch that it takes; None for any.
        scored_as: the peer whose quality it has: itself, one whose numbers are the same, or None where nothing is scored.
        has_layers: whether the layers that it runs are modules of the subject's model, which can be counted.
        keeps_threads: whether threads of its own stay between its turns. Then it is timed in a process of its own: with more
            OpenMP threads than cores in a process, everything in it takes twice as long.
        time_limit_sec: of its preparation, which then happens in a process of its own; None for no limit.
    """

    name: str
    what: str
    like: str | None = REFERENCE
    most_rows: int | None = None
    scored_as: str | None = REFERENCE
    has_layers: bool = True
    keeps_threads: bool = False
    time_limit_sec: float | None = None

    def why_absent(self, subject: Subject) -> str | None:
        """A sentence that says why this peer cannot run here; None if it can."""
        return None

    @abstractmethod
    def prepare(self, subject: Subject) -> None:
        """Load, cut, convert or compile, so that nothing of that is timed."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        """Greedy answers of exactly `new_tokens` tokens, whatever they are."""

    def logits(self, prompt: Prompt, continuation: Sequence[int]) -> torch.Tensor | None:
        """(n_tokens, vocabulary): what predicts each token of a continuation; None where its tokens are others."""
        raise NotImplementedError

    def text_logits(self, context: str, rest: str) -> tuple[torch.Tensor, Sequence[int]]:
        """What predicts each token of `rest` behind `context`, (n_tokens, vocabulary), and those tokens."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027
        """End what it started."""

    def text_of(self, tokens: Sequence[int]) -> str:
        """An answer's text up to the end of the answer."""
        raise NotImplementedError


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds that it took."""
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def missing_package(package: str, install: str) -> str | None:
    """The sentence of a peer whose package is not there."""
    if find_spec(package) is not None:
        return None
    return f"The package {install} is not installed: pip install {install}."
