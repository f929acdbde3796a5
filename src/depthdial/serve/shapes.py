"""What chats and completions look like: the choices of a whole response, and those of a stream's chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from depthdial.engine.logprobs import TokenLogprob
from depthdial.serve.tokens import TokenTexts

Found = Sequence[TokenLogprob] | None


@dataclass(frozen=True)
class End:
    """Why an answer is over: OpenAI's reason, and which stop string or token it was (vLLM's `stop_reason`)."""

    reason: str
    stop: str | int | None = None

    def fields(self) -> dict[str, Any]:
        return {"finish_reason": self.reason, "stop_reason": self.stop}


class Shape(Protocol):
    """How choices are written. `found` are log-probabilities of the new tokens; None where nobody asked for them."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, index: int, text: str, found: Found, end: End) -> dict[str, Any]: ...

    def opening(self, index: int) -> dict[str, Any] | None: ...

    def piece(self, index: int, text: str, found: Found) -> dict[str, Any]: ...

    def closing(self, index: int, end: End) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ChatShape:
    """`chat.completion`."""

    texts: TokenTexts
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, text: str, found: Found, end: End) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": self._logprobs(found), **end.fields()}

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str, found: Found) -> dict[str, Any]:
        return self._chunk(index, {"content": text}, found)

    def closing(self, index: int, end: End) -> dict[str, Any]:
        return self._chunk(index, {}, None) | end.fields()

    def _chunk(self, index: int, delta: dict[str, Any], found: Found) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": self._logprobs(found), "finish_reason": None}

    def _logprobs(self, found: Found) -> dict[str, Any] | None:
        return None if found is None else {"content": self.texts.chat(found), "refusal": None}


@dataclass(frozen=True)
class Echo:
    """A prompt that is given back before its answer.

    Attributes:
        tokens: of the prompt.
        logprobs: one for each token, None for the first; None where nobody asked for them.
    """

    text: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob | None] | None = None


@dataclass(frozen=True)
class CompletionShape:
    """`text_completion`.

    Attributes:
        n_answers: to each prompt.
        echoes: one for each prompt; empty where prompts are not given back.
    """

    texts: TokenTexts
    n_answers: int
    echoes: Sequence[Echo] = ()
    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, index: int, text: str, found: Found, end: End) -> dict[str, Any]:
        echo = self._echo(index)
        if echo is None:
            told = None if found is None else self._logprobs(index, [one.token for one in found], found)
            return {"index": index, "text": text, "logprobs": told, **end.fields()}
        told = None
        if found is not None or echo.logprobs is not None:
            mine = list(found or ())
            tokens = [*echo.tokens, *(one.token for one in mine)]
            told = self._logprobs(index, tokens, [*(echo.logprobs or ()), *mine])
        return {"index": index, "text": echo.text + text, "logprobs": told, **end.fields()}

    def opening(self, index: int) -> dict[str, Any] | None:
        echo = self._echo(index)
        if echo is None:
            return None
        told = None if echo.logprobs is None else self._logprobs(index, echo.tokens, echo.logprobs)
        return {"index": index, "text": echo.text, "logprobs": told, "finish_reason": None}

    def piece(self, index: int, text: str, found: Found) -> dict[str, Any]:
        told = None if found is None else self._logprobs(index, [one.token for one in found], found)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": None}

    def closing(self, index: int, end: End) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, **end.fields()}

    def _echo(self, index: int) -> Echo | None:
        return self.echoes[index // self.n_answers] if self.echoes else None

    def _logprobs(self, index: int, tokens: Sequence[int], found: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The tokens that come next in a choice."""
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(self.texts.text(token)) for token in tokens)
        return self.texts.completion(tokens, found, offset)
