"""`Engine`: many requests at many depths on one model, in a thread of its own."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from depthdial.checks import choice, whole
from depthdial.engine.answers import Answer
from depthdial.engine.batch import in_rows
from depthdial.engine.calls import check_call
from depthdial.engine.generation import Generation
from depthdial.engine.handles import EngineRequest
from depthdial.engine.reading import Reader
from depthdial.engine.scheduler import Limits, Scheduler
from depthdial.engine.schedules import SCHEDULES, Chooser, StepCost
from depthdial.engine.scoring import Fidelity, ScoredText, fidelity_of, score_text
from depthdial.engine.session import Session
from depthdial.engine.tallies import EngineStats, Tallies
from depthdial.engine.threads import give_back_threads
from depthdial.engine.worker import Job, Worker
from depthdial.errors import InputError
from depthdial.latency.model import LatencyModel


class Engine:
    """Answers many requests at once, each at its own depth: continuous batching on one copy of the weights.

    Requests join between two steps, as many as there are rows for, and leave with their last token; others wait in the
    order in which they came. An answer is what `dd.generate` gives for its prompt, whatever runs beside it: its chance is
    counted by its seed, prompt and position.

        with dd.Engine(model, tokenizer) as engine:
            answers = engine.run(["the cat", "a dog"], depth=["uls:50%", "full"], max_new_tokens=8)
            for piece in engine.submit("two dog", depth=0.5):
                print(piece, end="")

    One thread runs the model; `submit`, `run` and the requests may be used from any. The model is not changed. What else
    computes with PyTorch at the same time, in another thread, slows both down.

    Args:
        model: a decoder-only model, as in `dd.generate`; what is done to it later need not reach the engine.
        max_rows: answers that decode at once. Where memory does not suffice, fewer do.
        max_tokens: most tokens of keys and values that are held, those among them that running answers may still get;
            None for as many as memory holds.
        chunk_tokens: most tokens of prompts that run between two steps: what running answers wait for at most. Longer
            prompts run in parts.
        schedule: how rows of several routes run. `layer-major`: a step walks all layers once, each for the rows whose
            route has it. `by-route`: a batch for each route, filled up from the queue with requests of that route. `auto`:
            whichever takes less time.
        latency: what `auto` goes by: a `dd.LatencyModel`, the path of its file, or anything else with its `step_sec`;
            default: the engine's own steps, measured as they run.

    Raises:
        InputError: for a model that cannot generate, or a value that cannot be used.

    Example:
        >>> with dd.Engine(model, tokenizer, max_rows=4) as engine:
        ...     answers = engine.run(["the cat", "a dog"], depth=["uls:50%", "full"], max_new_tokens=4)
        ...     request = engine.submit("two dog", depth=0.5, max_new_tokens=4)
        ...     text = "".join(request)  # pieces come as they are generated
        >>> [len(answer.route) for answer in answers]
        [3, 6]
        >>> text == request.result().text, engine.stats().finished
        (True, 3)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int = 32,
        max_tokens: int | None = None,
        chunk_tokens: int = 512,
        schedule: str = "auto",
        latency: StepCost | str | PathLike[str] | None = None,
    ) -> None:
        whole("max_rows", max_rows, 1)
        whole("chunk_tokens", chunk_tokens, 1)
        if max_tokens is not None:
            whole("max_tokens", max_tokens, 1)
        choice("schedule", schedule, SCHEDULES)
        check_call(model, "full")
        session = Session.of(model, tokenizer)
        in_rows(session.model)  # tried out now, not in the first request
        self._limits = Limits(max_rows, max_tokens, chunk_tokens)
        self._session, self.tokenizer = session, tokenizer
        self._reader = Reader(session, tokenizer)
        self._tallies = Tallies(session.n_layers)
        self._scheduler = Scheduler(
            session, self._limits, Chooser(schedule, _read_cost(latency, session.n_layers)), self._tallies
        )
        self._worker = Worker(self._scheduler, session.device)
        self._numbers, self._reading = itertools.count(), threading.Lock()
        # Without a reference to the engine: one that nobody holds any more ends its thread.
        self._finalizer = weakref.finalize(self, self._worker.stop, True)
        give_back_threads()  # loading and trying out the model left some to this thread

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return self._session.n_layers

    @property
    def context_tokens(self) -> int | None:
        """The longest prompt and answer together that the model was made for; None if its configuration does not say."""
        return self._session.context_tokens

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer where nobody says otherwise."""
        return self._session.eos_token_ids

    def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Any] | None = None,
        prompt_ids: Sequence[int] | None = None,
        depth: Any = "full",
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **options: Any,
    ) -> EngineRequest:
        """Queue one request, and return at once.

        Args:
            prompt: a text. Or `messages`, a chat; or `prompt_ids`, the tokens of a prompt, which no template changes.
            depth: as in `dd.generate`, but for lists. A random rule draws by the number of the request in this engine.
            options: every other argument of `dd.generate` but `batch_size`, `streamer` and `on_text`. With `n`, several
                sampled answers.

        Returns:
            The request: `result()` waits for its Generation (a list of them with `n`), iterating gives pieces of its text,
            `events()` news of all its answers, `cancel()` stops it, and `done` says whether it is over.

        Raises:
            InputError: for what `dd.generate` refuses, a request that exceeds `max_tokens` or `max_rows` by itself, and
                after `close`.

        Example:
            >>> request = engine.submit("the cat", depth="ee:4", max_new_tokens=3, do_sample=True, seed=1, n=2)
            >>> [len(answer.tokens) <= 3 for answer in request.result()]
            [True, True]
        """
        if not isinstance(prompt, str | None):
            raise InputError(f"A request has one prompt, a text, not {type(prompt).__name__}: give several to run().")
        if isinstance(depth, list):
            raise InputError("A request has one depth, not a list: give several to run(), or a route's layers as a tuple.")
        given = {"messages": messages, "max_new_tokens": max_new_tokens, "seed": seed, "stop_strings": stop_strings}
        return self._submit(prompt, depth, {**given, "prompt_ids": prompt_ids, **options}, is_one=True)[0]

    def run(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Any] | None = None,
        depth: Any = "full",
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Answer prompts, and wait for all of the answers. If one fails, or on an interrupt, the others are cancelled.

        Args:
            prompts: a text or a list of texts. Or `messages`, a chat or a list of chats.
            depth: one for all, or a list of one for each prompt, as in `dd.generate`.
            options: as of `submit`.

        Returns:
            One Generation for each prompt, in order; with `n` so many for each, one after the other.

        Raises:
            InputError: as `submit`; nothing has run then.

        Example:
            >>> [answer.text for answer in engine.run("the cat", max_new_tokens=4)] == [
            ...     answer.text for answer in dd.generate(model, tokenizer, "the cat", max_new_tokens=4)
            ... ]
            True
        """
        given = {"messages": messages, "max_new_tokens": max_new_tokens, "seed": seed, "stop_strings": stop_strings}
        requests = self._submit(prompts, depth, {**given, **options})
        try:
            results = [request.result() for request in requests]
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return [one for result in results for one in (result if isinstance(result, list) else [result])]

    def score(
        self,
        prompt_ids: Sequence[int],
        *,
        depth: Any = "full",
        logprobs: int = 0,
        template: str = "auto",
        prompt_depth: str = "full",
    ) -> Future[ScoredText]:
        """Queue a pass that gives the log-probabilities of given tokens; all of them run on the depth.

        Args:
            prompt_ids: at least one token.
            depth: as of `submit`.
            logprobs: how many likeliest tokens to tell at each position.
            template, prompt_depth: what a controller asks about the prompt that it reads, which is the text.

        Returns:
            The future, whose result is a ScoredText.

        Raises:
            InputError: for a depth or tokens that cannot be used, more tokens than the model's context, and after `close`.

        Example:
            >>> scored = engine.score([4, 6, 8], depth="uls:50%").result()
            >>> scored.logprobs[0] is None, scored.logprobs[1].token, len(scored.route)
            (True, 6, 3)
        """
        whole("logprobs", logprobs, 0)
        with self._reading:
            self._worker.check_open()
            ids = self._reader.read_ids(prompt_ids)
            deciding, about = self._reader.read_depth(depth, prompt_depth, template)
            key = next(self._numbers)
        return self._queue(lambda: score_text(self._session, ids, deciding, about, key, logprobs))

    def fidelity(
        self, request: EngineRequest, place: int = 0, *, full_untouched: bool = False, is_patient: bool = True
    ) -> Future[Fidelity]:
        """Queue two passes that compare the depth of a finished answer with the full model, token by token.

        Args:
            place: which answer of the request.
            full_untouched: whether an answer on the full route ran without adapters, as a controller's does.
            is_patient: wait until half of the rows are free and nobody waits for them.

        Returns:
            The future, whose result is a Fidelity; `close` cancels one that waits.

        Example:
            >>> request = engine.submit("the cat", max_new_tokens=4)
            >>> _ = request.result()
            >>> engine.fidelity(request).result().agreement
            1.0
        """
        results = request.result()
        answer: Generation = results[place] if isinstance(results, list) else results
        return self._queue(lambda: fidelity_of(self._session, request.prompt_ids, answer, full_untouched), is_patient)

    def _queue(self, run: Callable[[], Any], is_patient: bool = False) -> Future[Any]:
        job = Job(run, is_patient)
        self._worker.submit(jobs=[job])
        return job.future

    def stats(self) -> EngineStats:
        """Requests, steps, layer calls, memory and times so far, and the schedule with the reason for it.

        Example:
            >>> _ = engine.run("the cat", depth="uls:50%", max_new_tokens=4)
            >>> stats = engine.stats()
            >>> stats.running, stats.layer_calls_run == stats.layer_calls_skipped
            (0, True)
        """
        now = self._scheduler.gauges
        return self._tallies.read(**{**vars(now), "waiting": now.waiting + self._worker.n_inbox})

    def close(self, *, cancel: bool = False) -> None:
        """Take no further requests and end the thread, once those that were submitted are done.

        Args:
            cancel: do not finish them.
        """
        self._worker.stop(cancel)
        self._finalizer.detach()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close(cancel=kind is not None)

    def _submit(self, prompts: Any, depth: Any, given: dict[str, Any], is_one: bool = False) -> list[EngineRequest]:
        with self._reading:  # tokenizers are not made for several threads
            self._worker.check_open()
            answers = self._reader.read(prompts, depth=depth, on_cancel=self._on_cancel, **given)
            handles = list(dict.fromkeys(answer.handle for answer in answers))
            if is_one and len(handles) > 1:
                raise InputError(f"A request has one chat, not {len(handles)}: give several to run().")
            for answer in answers:
                self._check_size(answer)
            # Of a list random rules draw by the place, as in generate.
            keys = {handle: next(self._numbers) if is_one else place for place, handle in enumerate(handles)}
            now = time.perf_counter()
            for answer in answers:
                answer.submitted_sec = now
                answer.set_key(keys[answer.handle])
            give_back_threads()  # before the worker needs all cores: the caller may have computed something meanwhile
            self._worker.submit(answers)
        return handles

    def _on_cancel(self) -> None:
        self._tallies.add(cancelled=1)
        self._worker.poke()

    def _check_size(self, answer: Answer) -> None:
        limits = self._limits
        if limits.max_tokens is not None and answer.need_tokens > limits.max_tokens:
            raise InputError(
                f"A prompt of {len(answer.ids)} tokens with an answer of up to {answer.limit} may hold {answer.need_tokens} "
                f"tokens of keys and values, and the engine's max_tokens is {limits.max_tokens}: give less max_new_tokens."
            )
        if answer.n_rows > limits.max_rows:
            raise InputError(
                f"An answer with guidance_scale takes {answer.n_rows} rows, and the engine's max_rows is "
                f"{limits.max_rows}: leave it out, or make an engine of more rows."
            )


def _read_cost(latency: Any, n_layers: int) -> StepCost | None:
    if isinstance(latency, str | PathLike):
        latency = LatencyModel.load(Path(latency))
    if isinstance(latency, LatencyModel):
        latency.require_fits(n_layers)
    if latency is not None and not callable(getattr(latency, "step_sec", None)):
        raise InputError(
            f"The argument latency is a latency model or its file, not {type(latency).__name__}: give what depthdial bench "
            "writes."
        )
    return latency
