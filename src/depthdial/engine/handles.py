"""A request of an engine as its caller holds it: its answers once they are there, its text as it comes, a way to stop it.

The worker writes here and callers read, from any thread. Text is made of tokens in the thread that reads it, so that a step
never waits for a tokenizer.
"""

from __future__ import annotations

import concurrent.futures
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from depthdial.engine.generation import Generation
from depthdial.engine.streams import Pieces
from depthdial.errors import InputError, one_line


class RequestCancelledError(InputError, concurrent.futures.CancelledError):
    """A request was cancelled, so that it has no result."""


class RequestFailedError(RuntimeError):
    """The model's pass, or something that the request asked for, raised an error; it is the cause of this one."""


class EngineRequest:
    """A request that an `Engine` has taken: one prompt, and one answer or several to it.

    Iterating gives pieces of the text as they come, whole characters only, which make up `Generation.text`; each iteration
    starts with the first piece, and ends early where the request is cancelled.

    Args:
        n_answers: how many answers the prompt gets.
        on_cancel: called once if the request is cancelled before it is done.

    Example:
        >>> with dd.Engine(model, tokenizer) as engine:
        ...     request = engine.submit("the cat", depth="uls:50%", max_new_tokens=4)
        ...     text = "".join(request)
        >>> request.done, request.result().text == text
        (True, True)
    """

    def __init__(self, tokenizer: Any, n_answers: int, on_cancel: Callable[[], None]) -> None:
        self.tokenizer, self._on_cancel = tokenizer, on_cancel
        self._changed = threading.Condition()
        self._tokens: list[int] = []
        self._answers: list[Generation | None] = [None] * n_answers
        self._error: Exception | None = None
        self._is_cancelled = False

    @property
    def n_answers(self) -> int:
        return len(self._answers)

    @property
    def done(self) -> bool:
        """Whether all answers are there, or there will be none."""
        return self._is_cancelled or self._error is not None or None not in self._answers

    @property
    def cancelled(self) -> bool:
        return self._is_cancelled

    def result(self, timeout: float | None = None) -> Any:
        """The Generation once it is there; a list of them where several answers were asked for.

        Args:
            timeout: most seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: if it is not there by then; the request goes on.
            InputError: if the request was cancelled, or needs more memory than there is.
            RequestFailedError: if something else went wrong with it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"The request has no result after {timeout:g} s: wait longer, or cancel it.")
        if self._is_cancelled:
            raise RequestCancelledError(
                f"The request was cancelled after {len(self._tokens)} tokens: submit it again for an answer."
            )
        if self._error is not None:
            raise self._error
        return self._answers[0] if self.n_answers == 1 else list(self._answers)

    def cancel(self) -> bool:
        """Stop the request; its rows are free from the next step on.

        Returns:
            False if it was done already.
        """
        with self._changed:
            if self.done:
                return False
            self._is_cancelled = True
            self._changed.notify_all()
        self._on_cancel()
        return True

    def __iter__(self) -> Iterator[str]:
        """Pieces of the text.

        Raises:
            InputError: where several answers were asked for.
            RequestFailedError: if the request fails meanwhile.
        """
        if self.n_answers > 1:
            raise InputError(f"One answer can be streamed, not {self.n_answers}: ask for one, or call result().")
        return self._pieces()

    def _pieces(self) -> Iterator[str]:
        found: list[str] = []
        streamer, n_read, is_done = Pieces(self.tokenizer, found.append), 0, False
        streamer.put(torch.empty(0))  # the prompt, which a streamer is given first
        while not is_done:
            with self._changed:
                while not (self.done or len(self._tokens) > n_read):
                    self._changed.wait()
                is_done, new = self.done, self._tokens[n_read:]
            if new:
                n_read += len(new)
                streamer.put(torch.tensor(new))
            if is_done and not self._is_cancelled:
                streamer.end()
            yield from found
            found.clear()
        if self._error is not None:
            raise self._error

    # What the worker calls.

    def add_token(self, place: int, token: int) -> None:
        """The next token of one of the answers; only the first one's are kept, to be streamed."""
        if place == 0:
            with self._changed:
                self._tokens.append(token)
                self._changed.notify_all()

    def finish(self, place: int, answer: Generation, count: Callable[[], None]) -> None:
        """One of the answers is there; `count` is called if that was the last one, before anybody sees it."""
        with self._changed:
            if not self.done and self._answers.count(None) == 1:
                count()
            self._answers[place] = answer
            self._changed.notify_all()

    def fail(self, error: Exception, count: Callable[[], None]) -> None:
        """There will be no further answers; `count` is called unless the request was done."""
        with self._changed:
            if not self.done:
                count()
                self._error = error
                self._changed.notify_all()


def failure(error: Exception, n_tokens: int) -> Exception:
    """The one sentence that a caller gets for an error that came up behind so many tokens."""
    if isinstance(error, InputError):
        return error.with_traceback(None)
    told = one_line(error)
    kind = type(error).__name__ + (f": {told}" if told else "")
    found = RequestFailedError(f"The request failed after {n_tokens} tokens ({kind}): submit it again.")
    found.__cause__ = error
    # Where it came up, as text: a traceback holds the tensors of its frames, for as long as a caller holds the request.
    if error.__traceback__ is not None:
        found.add_note("".join(traceback.format_tb(error.__traceback__)))
    error.with_traceback(None)
    return found


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left: on a CPU it has no class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
