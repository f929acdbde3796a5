"""What can be checked against a full model: loaded models (from a folder or a GGUF file), and models behind a URL."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from depthdial.data.tasks import EncodedExample, Task, encode
from depthdial.engine.session import Session
from depthdial.hf.load import load
from depthdial.measure.endpoint import Completion, Endpoint, check_send, is_url
from depthdial.measure.plan import ModelIdentity

# A URL, a folder, a .gguf file, or a model with its tokenizer.
TargetLike = str | os.PathLike[str] | tuple[Any, Any]


class Target(Protocol):
    """Something that answers the rows of a task, as it ships.

    Attributes:
        label: for messages.
        settings: what decides about its answers, JSON-ready.
    """

    @property
    def label(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def batch_size(self, asked: int) -> int:
        """How many rows it may answer at a time, of so many."""
        ...

    def answers(self, places: Sequence[int], max_new_tokens: int) -> list[Completion]:
        """Greedy answers to the rows at these places of the task."""
        ...


@dataclass(frozen=True)
class LoadedTarget:
    """A model in memory: all of its layers, prompts made by its own tokenizer and chat template.

    Attributes:
        given: the model as it was loaded.
        examples: of the task, as its tokenizer encodes them.
    """

    given: Any
    tokenizer: Any
    session: Session
    examples: Sequence[EncodedExample]
    identity: ModelIdentity

    @classmethod
    def of(cls, model: Any, tokenizer: Any, task: Task, name: str | None = None) -> LoadedTarget:
        session = Session.of(model, tokenizer)
        examples = encode(task, tokenizer, context_tokens=session.context_tokens)
        return cls(model, tokenizer, session, examples, ModelIdentity.of(model, name))

    @property
    def label(self) -> str:
        return self.identity.name

    @property
    def settings(self) -> Mapping[str, Any]:
        told = {"target": self.label, "target_weights": self.identity.weights_hash, "target_dtype": self.identity.dtype}
        return {**told, "target_first_prompt": list(self.examples[0].prompt_ids)}

    def batch_size(self, asked: int) -> int:
        return 1 if self.session.rotates_by_length else asked

    def answers(self, places: Sequence[int], max_new_tokens: int) -> list[Completion]:
        started, session = time.perf_counter(), self.session
        prefilled = session.prefill([self.examples[place] for place in places])
        decoded = session.decode(session.full, prefilled, max_new_tokens)
        each_sec = (time.perf_counter() - started) / len(places)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in decoded.tokens]
        ended = [reason == "eos" for reason in decoded.finish_reasons]
        return [Completion(text, is_ended, each_sec) for text, is_ended in zip(texts, ended, strict=True)]


@dataclass(frozen=True)
class ServedTarget:
    """A model behind a URL.

    Attributes:
        prompts: token ids, or texts, of the full model's own prompts.
        send: which of both.
    """

    endpoint: Endpoint
    prompts: Sequence[Any]
    send: str

    @property
    def label(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.base}"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"target": self.endpoint.base, "served_model": self.endpoint.model, "send": self.send}

    def batch_size(self, asked: int) -> int:
        return asked

    def answers(self, places: Sequence[int], max_new_tokens: int) -> list[Completion]:
        return self.endpoint.complete([self.prompts[place] for place in places], max_new_tokens)


def open_target(
    target: TargetLike,
    task: Task,
    examples: Sequence[EncodedExample],
    tokenizer: Any,
    *,
    served_model: str | None,
    api_key: str | None,
    send: str,
) -> Target:
    """The target that a URL, a folder, a file or a loaded model is.

    Args:
        examples, tokenizer: the full model's, of which a server gets the prompts.

    Raises:
        InputError: if it cannot be loaded or reached.
    """
    check_send(send)
    if isinstance(target, tuple):
        return LoadedTarget.of(*target, task)
    text = os.fspath(target)
    if not is_url(text):
        return LoadedTarget.of(*load(text), task, text)
    endpoint = Endpoint.connect(text, served_model, api_key)
    return ServedTarget(endpoint, [_sent(example, tokenizer, send) for example in examples], send)


def _sent(example: EncodedExample, tokenizer: Any, send: str) -> Any:
    ids = list(example.prompt_ids)
    if send == "ids":
        return ids
    # A server puts the begin token before a text by itself.
    return tokenizer.decode(ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids)
