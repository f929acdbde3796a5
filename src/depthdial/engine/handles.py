"""A request of an engine as its caller holds it: its answers once they are there, its text as it comes, a way to stop it.

The worker writes here and callers read, from any thread. Text is made of tokens in the thread that reads it, so that a step
never waits for a tokenizer.
"""

from __future__ import annotations

import concurrent.futures
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from depthdial.engine.events import AnswerLog, EventReader
from depthdial.engine.generation import Generation
from depthdial.engine.logprobs import TokenLogprob
from depthdial.errors import InputError, one_line


class RequestCancelledError(InputError, concurrent.futures.CancelledError):
    """A request was cancelled, so that it has no result."""


class RequestFailedError(RuntimeError):
    """The model's pass, or something that the request asked for, raised an error; it is the cause of this one."""


class EngineRequest:
    """A request that an `Engine` has taken: one prompt, and one answer or several to it.

    Iterating gives pieces of the text as they come, whole characters only, which make up `Generation.text`; each iteration
    starts with the first piece, and ends early where the request is cancelled. `events` gives more: tokens,
    log-probabilities and ends of all answers.

    Args:
        n_answers: how many answers the prompt gets.
        on_cancel: called once if the request is cancelled before it is done.
        prompt_ids: the prompt's tokens.

    Example:
        >>> with dd.Engine(model, tokenizer) as engine:
        ...     request = engine.submit("the cat", depth="uls:50%", max_new_tokens=4)
        ...     text = "".join(request)
        >>> request.done, request.result().text == text
        (True, True)
        >>> [event.answer.finish_reason for event in request.events() if event.answer]
        ['length']
    """

    def __init__(
        self, tokenizer: Any, n_answers: int, on_cancel: Callable[[], None], prompt_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer, self.prompt_ids, self._on_cancel = tokenizer, tuple(prompt_ids), on_cancel
        self._log = AnswerLog(n_answers)

    @property
    def n_answers(self) -> int:
        return len(self._log.answers)

    @property
    def done(self) -> bool:
        """Whether all answers are there, or there will be none."""
        return self._log.is_over

    @property
    def cancelled(self) -> bool:
        return self._log.is_cancelled

    def result(self, timeout: float | None = None) -> Any:
        """The Generation once it is there; a list of them where several answers were asked for.

        Args:
            timeout: most seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: if it is not there by then; the request goes on.
            InputError: if the request was cancelled, or needs more memory than there is.
            RequestFailedError: if something else went wrong with it.
        """
        log = self._log
        with log.changed:
            if not log.changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"The request has no result after {timeout:g} s: wait longer, or cancel it.")
        if log.is_cancelled:
            raise RequestCancelledError(
                f"The request was cancelled after {len(log.tokens[0])} tokens: submit it again for an answer."
            )
        if log.error is not None:
            raise log.error
        return log.answers[0] if self.n_answers == 1 else list(log.answers)

    def cancel(self) -> bool:
        """Stop the request; its rows are free from the next step on.

        Returns:
            False if it was done already.
        """
        with self._log.changed:
            if self.done:
                return False
            self._log.is_cancelled = True
        self._log.tell()
        self._on_cancel()
        return True

    def events(self) -> EventReader:
        """The events of all answers, to be iterated over, or to be taken without waiting (`take`).

        Raises:
            RequestFailedError: by the iteration, if the request fails meanwhile.
        """
        return EventReader(self._log, self.tokenizer)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever there are new events, in the engine's thread, which waits for it; at once where
        there are some already.
        """
        self._log.listen(listener)

    def __iter__(self) -> Iterator[str]:
        """Pieces of the text.

        Raises:
            InputError: where several answers were asked for.
            RequestFailedError: if the request fails meanwhile.
        """
        if self.n_answers > 1:
            raise InputError(f"One answer can be streamed, not {self.n_answers}: ask for one, or read events() or result().")
        return (event.text for event in self.events() if event.text)

    # What the worker calls.

    def add_token(self, place: int, token: int, logprob: TokenLogprob | None = None) -> None:
        """The next token of one of the answers."""
        with self._log.changed:
            self._log.tokens[place].append(token)
            if logprob is not None:
                self._log.logprobs[place].append(logprob)
        self._log.tell()

    def finish(self, place: int, answer: Generation, count: Callable[[], None]) -> None:
        """One of the answers is there; `count` is called if that was the last one, before anybody sees it."""
        with self._log.changed:
            if not self.done and self._log.answers.count(None) == 1:
                count()
            self._log.answers[place] = answer
        self._log.tell()

    def fail(self, error: Exception, count: Callable[[], None]) -> None:
        """There will be no further answers; `count` is called unless the request was done."""
        with self._log.changed:
            if self.done:
                return
            count()
            self._log.error = error
        self._log.tell()


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


def no_memory(prompt: Sequence[int], limit: int, error: Exception) -> InputError:
    """For a prompt whose answer of up to `limit` tokens memory does not hold, whatever else runs."""
    found = InputError(
        f"The memory does not hold a prompt of {len(prompt)} tokens and an answer of up to {limit} even alone: shorten "
        "them, or load the model in a smaller dtype."
    )
    found.__cause__ = error.with_traceback(None)
    return found


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left: on a CPU it has no class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
