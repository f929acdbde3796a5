"""Requests of an engine as its callers write them, made into answers; what can be refused before anything runs is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from depthdial.data.templates import resolve_template
from depthdial.engine.answers import Answer
from depthdial.engine.calls import check_call, read_functions, read_settings
from depthdial.engine.depth import Asked, Depth
from depthdial.engine.depth_lists import is_several, one_each, takes_routes, written_alike
from depthdial.engine.depth_numbers import number_in
from depthdial.engine.handles import EngineRequest
from depthdial.engine.requests import Request, read_requests, repeated
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap

_KEPT_DEPTHS = 256


class Reader:
    """Reads the arguments of `submit` and `run`, which are those of `dd.generate`; one thread at a time.

    Args:
        session: of the engine's model.
    """

    def __init__(self, session: Session, tokenizer: Any) -> None:
        self._session, self._tokenizer = session, tokenizer
        # What is written alike is read once: a folder is not loaded again, and a warning comes once.
        self._depths: dict[Any, tuple[Depth, Any]] = {}

    def read(
        self,
        prompts: Any,
        *,
        on_cancel: Callable[[], None],
        messages: Any,
        depth: Any,
        max_new_tokens: Any,
        seed: Any,
        stop_strings: Any,
        routes: Any = None,
        prompt_depth: str = "full",
        template: str = "auto",
        generation_config: Any = None,
        prompt_ids: Sequence[int] | None = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """The answers to all prompts, in order; those to one prompt share its handle.

        Raises:
            InputError: for whatever `dd.generate` refuses.
        """
        session = self._session
        check_call(session.given, prompt_depth)
        _refuse_others(options)
        requests = self._requests(prompts, messages, template, prompt_ids)
        own = read_functions("logits_processor", logits_processor)
        criteria = read_functions("stopping_criteria", stopping_criteria)
        chosen, limits = read_settings(
            session,
            requests,
            own,
            max_new_tokens=max_new_tokens,
            stop_strings=stop_strings,
            generation_config=generation_config,
            seed=seed,
            given=options,
        )
        about = Asked(prompt_depth, resolve_template(template, self._tokenizer), routes)
        depths = self._read_depths(depth, about, len(requests))
        n_answers = chosen.n_answers
        handles = [EngineRequest(self._tokenizer, n_answers, on_cancel, request.ids) for request in requests]
        return [
            Answer(
                asked,
                handles[place // n_answers],
                place % n_answers,
                *depths[place // n_answers],
                chosen,
                limits[place // n_answers],
                own,
                criteria,
            )
            for place, asked in enumerate(repeated(requests, n_answers))
        ]

    def read_ids(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens of one text.

        Raises:
            InputError: for none, unknown ones, or more than the model's context holds.
        """
        ids = self._requests(None, None, "plain", prompt_ids)[0].ids
        context = self._session.context_tokens
        if context is not None and len(ids) > context:
            raise InputError(f"A text has {len(ids)} tokens but the model's context is {context}: shorten it.")
        return ids

    def read_depth(self, depth: Any, prompt_depth: str, template: str = "auto") -> tuple[Depth, Asked]:
        """One depth, ready to assign routes, and what is asked beside it.

        Raises:
            InputError: for what is no depth, or does not fit.
        """
        return self._read_depth(depth, Asked(prompt_depth, resolve_template(template, self._tokenizer)))

    def _requests(self, prompts: Any, messages: Any, template: str, prompt_ids: Any) -> list[Request]:
        embeddings: Any = unwrap(self._session.model).get_input_embeddings()
        vocabulary = int(embeddings.weight.shape[0])
        return read_requests(prompts, messages, template, self._tokenizer, prompt_ids, vocabulary)

    def _read_depths(self, depth: Any, about: Asked, n_prompts: int) -> list[tuple[Depth, Asked]]:
        if not is_several(depth):
            return [self._read_depth(depth, about)] * n_prompts
        given = one_each(depth, n_prompts, about.routes)
        return [self._read_depth(one, about if takes_routes(one) else replace(about, routes=None)) for one in given]

    def _read_depth(self, depth: Any, about: Asked) -> tuple[Depth, Asked]:
        about_it = about if number_in(depth) is None else replace(about, routes=None)
        key = written_alike(depth), about.prompt_depth, about.template, id(about.routes)
        if key not in self._depths or about.routes is not None:
            found = Depth.parse(depth, self._session.given, about.routes)
            found.prepare(self._session, about_it)
            if len(self._depths) >= _KEPT_DEPTHS:
                self._depths.pop(next(iter(self._depths)))
            self._depths[key] = found, depth  # held, so that its id stays its own
        return self._depths[key][0], about_it


def _refuse_others(options: dict[str, Any]) -> None:
    """Arguments of `generate` that have no place here."""
    instead = {
        "batch_size": "give max_rows to dd.Engine",
        "streamer": "iterate over the request for its text",
        "on_text": "iterate over the request for its text",
    }
    for name, remedy in instead.items():
        if name in options:
            raise InputError(f"The argument {name} is of dd.generate, not of an engine: {remedy}.")
