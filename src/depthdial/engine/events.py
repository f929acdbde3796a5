"""What happens to a request while it is answered, as events: each tells the new tokens of one answer, and their text.

The worker writes an `AnswerLog`, and any number of readers read it from any thread, each from the first token on. Text is
made of tokens by the reader, so that a step never waits for a tokenizer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from depthdial.engine.generation import Generation
from depthdial.engine.logprobs import TokenLogprob


@dataclass(frozen=True)
class AnswerEvent:
    """The news about one answer of a request.

    Attributes:
        place: which answer of the request, from 0.
        tokens: new ones since the event before; there may be none in the last one.
        logprobs: of these tokens, where `logprobs` asked for them; else empty.
        text: whole characters that are new. A character whose tokens are not all there comes with a later event.
        answer: the finished answer, with its last event.
    """

    place: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    text: str
    answer: Generation | None = None


class TextSoFar:
    """Turns tokens into text as they come, whole characters only.

    Each call decodes the latest tokens alone, so that a long answer costs no more by the token than a short one.

    Example:
        >>> text = TextSoFar(tokenizer)
        >>> text.add([4, 6]) + text.add([8]) + text.end()
        'the cat sat'
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = self._end = 0  # tokens that the next ones are decoded behind; their text was passed on
        self._sent = 0

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character lacks some of its tokens."""
        self._tokens += tokens
        before = len(self._decode(self._tokens[self._start : self._end]))
        text = self._decode(self._tokens[self._start :])
        if len(text) <= before or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._end = self._end, len(self._tokens)
        self._sent += len(text) - before
        return text[before:]

    def end(self) -> str:
        """What is left of the text, once there are no further tokens."""
        rest = self._decode(self._tokens)[self._sent :]
        self._sent += len(rest)
        return rest

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""


class AnswerLog:
    """The answers of one request so far. Whoever writes holds `changed`, and calls `tell` after it has let go of it.

    Args:
        n_answers: that the prompt gets.
    """

    def __init__(self, n_answers: int) -> None:
        self.changed = threading.Condition()
        self.tokens: list[list[int]] = [[] for _ in range(n_answers)]
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(n_answers)]
        self.answers: list[Generation | None] = [None] * n_answers
        self.error: Exception | None = None
        self.is_cancelled = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        """Whether all answers are there, or there will be none."""
        return self.is_cancelled or self.error is not None or None not in self.answers

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called, in the thread that writes, whenever there is news; at once if there is some already."""
        with self.changed:
            self._listeners.append(listener)
            has_news = self.is_over or any(self.tokens)
        if has_news:
            listener()

    def tell(self) -> None:
        """Wake whoever waits for news."""
        with self.changed:
            self.changed.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()


class EventReader:
    """Reads the events of one request, from the first token on.

    Args:
        tokenizer: that text is decoded with.
    """

    def __init__(self, log: AnswerLog, tokenizer: Any) -> None:
        self._log = log
        self._texts = [TextSoFar(tokenizer) for _ in log.answers]
        self._n_read = [0] * len(log.answers)
        self._is_told = [False] * len(log.answers)
        self.is_over = False

    def take(self) -> list[AnswerEvent]:
        """The events since the last call, in the order of the answers, without waiting. `is_over` then says whether more
        may come.
        """
        log = self._log
        with log.changed:
            self.is_over = log.is_over
            ends_whole = self.is_over and not log.is_cancelled
            news = [
                (log.tokens[place][n:], log.logprobs[place][n:], log.answers[place]) for place, n in enumerate(self._n_read)
            ]
        return [
            event
            for place, (tokens, logprobs, answer) in enumerate(news)
            if not self._is_told[place] and (event := self._event(place, tokens, logprobs, answer, ends_whole)) is not None
        ]

    def wait(self) -> list[AnswerEvent]:
        """The same, once there are any or there will be no more."""
        with self._log.changed:
            self._log.changed.wait_for(lambda: self._log.is_over or self._has_news())
        return self.take()

    def __iter__(self) -> Iterator[AnswerEvent]:
        """All events; ends early where the request is cancelled.

        Raises:
            RequestFailedError: if the request fails meanwhile.
        """
        while not self.is_over:
            yield from self.wait()
        if self._log.error is not None:
            raise self._log.error

    def _has_news(self) -> bool:
        log = self._log
        places = range(len(self._n_read))
        return any(
            not self._is_told[p] and (len(log.tokens[p]) > self._n_read[p] or log.answers[p] is not None) for p in places
        )

    def _event(
        self, place: int, tokens: list[int], logprobs: list[TokenLogprob], answer: Generation | None, ends_whole: bool
    ) -> AnswerEvent | None:
        self._n_read[place] += len(tokens)
        text = self._texts[place].add(tokens) if tokens else ""
        if answer is not None or ends_whole:
            text += self._texts[place].end()
            self._is_told[place] = True
        if not (tokens or text or answer is not None):
            return None
        return AnswerEvent(place, tuple(tokens), tuple(logprobs), text, answer)
