"""The endpoints that answer prompts: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from depthdial.engine.generation import Generation
from depthdial.engine.handles import EngineRequest
from depthdial.engine.scoring import ScoredText
from depthdial.errors import InputError
from depthdial.serve import asked
from depthdial.serve.depths import Chosen
from depthdial.serve.errors import ApiError, Json
from depthdial.serve.replies import Reply
from depthdial.serve.running import Watch
from depthdial.serve.schemas import ChatRequest, CompletionRequest, SamplingRequest
from depthdial.serve.service import Ready
from depthdial.serve.settings import ServeSettings
from depthdial.serve.shapes import ChatShape, CompletionShape, Echo
from depthdial.serve.streams import ClientGoneError, EventStream, unless_gone
from depthdial.serve.usage import usage_of


@dataclass
class Submitted:
    """What a request has under way.

    Attributes:
        prompts: tokens of each.
        requests: one for each prompt; none where no tokens are asked for.
        scored: log-probabilities of the prompts, where they are echoed with them.
    """

    prompts: Sequence[Sequence[int]]
    requests: list[EngineRequest] = field(default_factory=list)
    scored: list[Future[ScoredText]] = field(default_factory=list)

    def cancel(self) -> None:
        for one in (*self.requests, *self.scored):
            one.cancel()


@dataclass(frozen=True)
class Endpoint:
    """Answers requests of one kind on a loaded model.

    Args:
        ready: the model.
    """

    ready: Ready
    settings: ServeSettings

    async def chat(self, body: ChatRequest, http: Request) -> Response:
        """`/v1/chat/completions`."""

        def shape(_: Submitted) -> ChatShape:
            return ChatShape(self.ready.texts)

        read = functools.partial(asked.chat_ids, body.messages, self.ready.tokenizer)
        return await self._answer(body, http, [read], body.limit, shape, template="auto")

    async def complete(self, body: CompletionRequest, http: Request) -> Response:
        """`/v1/completions`."""
        if body.limit == 0 and not body.echo:
            raise ApiError(
                400,
                "The field max_tokens=0 asks for nothing: give echo=true for the prompt, or more.",
                param="max_tokens",
                code="invalid",
            )
        prompts = body.prompts

        def shape(submitted: Submitted) -> CompletionShape:
            echoes = self._echoes(prompts, submitted) if body.echo else ()
            return CompletionShape(self.ready.texts, body.n or 1, echoes)

        reads = [functools.partial(asked.text_ids, prompt, self.ready.tokenizer) for prompt in prompts]
        scores = bool(body.echo) and body.logprobs is not None
        return await self._answer(body, http, reads, body.limit, shape, template=None, scores=scores)

    async def _answer(
        self,
        body: ChatRequest | CompletionRequest,
        http: Request,
        reads: Sequence[Callable[[], Sequence[int]]],
        limit: int | None,
        shape: Callable[[Submitted], Any],
        *,
        template: str | None,
        scores: bool = False,
    ) -> Response:
        """Submit prompts and reply.

        Args:
            reads: give the tokens of each prompt.
            template: that prompts were made with; None for raw ones.
            scores: whether the log-probabilities of prompts are asked for.
        """
        body.refuse_unsupported()
        chosen = self.ready.depths.choose(body.model, body.depth, body.reasoning_effort)
        n_answers = body.n or 1
        with contextlib.ExitStack() as held:
            held.enter_context(self.ready.gate.hold(len(reads) * n_answers))
            submit = functools.partial(self._submit, body, chosen, reads, limit, template, scores)
            submitted = await asyncio.get_running_loop().run_in_executor(self.ready.reading, submit)
            held.callback(submitted.cancel)
            times = self.settings.timeout_sec, self.settings.keep_alive_sec
            watch = Watch(submitted.requests, *times, is_stream=bool(body.stream))
            finish = functools.partial(self._count, submitted, watch, chosen, n_answers)
            try:
                await unless_gone(self._scored(submitted), http.receive)
                n_prompt = sum(map(len, submitted.prompts))
                reply = Reply(
                    shape(submitted),
                    body.model or self.ready.depths.name,
                    n_answers,
                    body.stops,
                    bool(body.include_stop_str_in_output),
                    asked.end_tokens(body, self.ready.engine.eos_token_ids),
                    functools.partial(usage_of, chosen, self.ready.depths.n_layers, n_prompt),
                )
                if body.stream:
                    return self._stream(body, reply, watch, len(reads), finish, held.pop_all())
                if not submitted.requests:
                    return Json(reply.empty(len(reads)))
                answers = await unless_gone(watch.finished(), http.receive)
            except ClientGoneError:
                finish("abort")
                return Response(status_code=499)
            except ApiError:
                finish("error")
                raise
            finish(None)
            return Json(reply.whole(answers))

    def _stream(
        self,
        body: SamplingRequest,
        reply: Reply,
        watch: Watch,
        n_prompts: int,
        finish: Callable[[str | None], None],
        held: contextlib.ExitStack,
    ) -> EventStream:
        def on_end(error: Exception | None) -> None:
            with held:
                finish(None if error is None else "abort" if isinstance(error, ClientGoneError) else "error")

        most_sec = self.settings.timeout_sec + self.settings.keep_alive_sec
        return EventStream(reply.stream(watch, n_prompts, body.includes_usage), on_end, most_sec)

    def _submit(
        self,
        body: ChatRequest | CompletionRequest,
        chosen: Chosen,
        reads: Sequence[Callable[[], Sequence[int]]],
        limit: int | None,
        template: str | None,
        scores: bool,
    ) -> Submitted:
        """In the thread that reads: the tokens of all prompts first, so that nothing runs where one cannot be used."""
        engine = self.ready.engine
        submitted = Submitted([tuple(read()) for read in reads])
        options = asked.options(body, engine.eos_token_ids)
        if body.n_logprobs is not None:
            options["logprobs"] = body.n_logprobs
        about = {"template": template or chosen.template, "prompt_depth": chosen.prompt_depth, "depth": chosen.depth}
        try:
            for ids in submitted.prompts if scores else ():
                submitted.scored.append(engine.score(ids, logprobs=body.n_logprobs or 0, **about))
            for ids in submitted.prompts if limit != 0 else ():
                most = asked.answer_limit(body, limit, len(ids), engine, self.settings.max_answer_tokens)
                submitted.requests.append(engine.submit(prompt_ids=ids, max_new_tokens=most, **about, **options))
        except InputError as error:
            submitted.cancel()
            raise asked.refused(error) from error
        except BaseException:
            submitted.cancel()
            raise
        for ids in submitted.prompts:
            self.ready.metrics.began(len(ids))
        return submitted

    async def _scored(self, submitted: Submitted) -> None:
        """Wait for the log-probabilities of prompts."""
        try:
            for future in submitted.scored:
                await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_sec)
        except InputError as error:
            raise asked.refused(error) from error
        except TimeoutError:
            raise ApiError(
                504, "The log-probabilities of the prompt took too long: ask for fewer.", code="timeout"
            ) from None

    def _echoes(self, prompts: Sequence[str | list[int]], submitted: Submitted) -> list[Echo]:
        found = []
        for place, (prompt, ids) in enumerate(zip(prompts, submitted.prompts, strict=True)):
            text = prompt if isinstance(prompt, str) else self.ready.tokenizer.decode(list(ids), skip_special_tokens=False)
            logprobs = submitted.scored[place].result().logprobs if submitted.scored else None
            found.append(Echo(text, ids, logprobs))
        return found

    def _count(self, submitted: Submitted, watch: Watch, chosen: Chosen, n_answers: int, ended: str | None) -> None:
        """Metrics of a request that is over.

        Args:
            ended: `abort` or `error`; None for one that came to its end.
        """
        metrics = self.ready.metrics
        if watch.first_token_sec is not None:
            metrics.first_token(watch.first_token_sec)
        if ended is not None:
            metrics.ended_early(max(len(submitted.requests), 1) * n_answers, ended)
            return
        seconds = time.monotonic() - watch.started
        for request in submitted.requests:
            results = request.result()
            answers: list[Generation] = results if isinstance(results, list) else [results]
            for answer in answers:
                metrics.answered(answer, chosen.label, seconds)
            self.ready.shadow.consider(request, chosen.label)
