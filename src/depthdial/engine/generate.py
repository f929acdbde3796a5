"""Answers to prompts: one full prefill of a batch, then shallow decoding, grouped by the route that each prompt takes.

The route is the caller's, or a controller's that reads the prompt's hidden states on the way. An answer is what its prompt
would get alone: how long it may be, where it ends and what is drawn are each row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from depthdial.data.templates import resolve_template
from depthdial.engine.batch import in_rows
from depthdial.engine.calls import check_call, read_functions, read_settings
from depthdial.engine.depth import Asked, Assignment, Batch, Depth, RouteDepth
from depthdial.engine.depth_lists import is_several, one_each, takes_routes, written_alike
from depthdial.engine.depth_numbers import number_in
from depthdial.engine.generation import Generation
from depthdial.engine.handles import is_out_of_memory, no_memory
from depthdial.engine.loop import Guidance, decode_tokens
from depthdial.engine.lossless import Lossless
from depthdial.engine.options import Options
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.processors import Row
from depthdial.engine.requests import Request, read_requests, repeated
from depthdial.engine.row_sampler import RowSampler
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import Chance
from depthdial.engine.session import Session
from depthdial.engine.speculation import GUIDED, PROCESSED, Drafting
from depthdial.engine.streams import check_streaming, streaming
from depthdial.routes import AnyRoute, Route
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth

OneDepth = AnyRoute | TokenDepth | Depth | Lossless | str | float | tuple[int, ...] | PathLike[str]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str] | None = None,
    *,
    messages: Sequence[Any] | None = None,
    depth: OneDepth | Sequence[OneDepth] = "full",
    routes: Any = None,
    prompt_depth: str = "full",
    max_new_tokens: int | None = None,
    template: str = "auto",
    batch_size: int = 16,
    seed: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    streamer: Any = None,
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> list[Generation]:
    """Answer prompts with only some of a model's layers.

    What a prompt gets does not depend on the others of its batch. The model runs in eval mode, whatever mode it is in, and
    is not changed, not for a moment either.

        prompts = ["Name two fruits.", "Say hello."]
        answers = dd.generate(model, tokenizer, prompts, depth=["uls:50%", "full"], max_new_tokens=8)
        [(a.text, len(a.route), a.finish_reason) for a in answers]

    Args:
        prompts: a text or a list of texts. Or `messages`.
        messages: a chat, `[{"role": "user", "content": "Hello."}]`, or a list of chats, for the tokenizer's chat template;
            a last message of the assistant is continued.
        depth: a Route, its text (`"uls:50%"`), its layers `(0, 1, 5)`, or a random rule, drawn once for each prompt by its
            place in the list; a share such as 0.5 or "50%" for the best known route of at most half of the layers; a count
            from 2 such as 24 or "24" for that of at most so many; `"routes.json:24"` or `"searched:80%"` for that of a
            family's file or of the model's own searched family; `"lossless"` or `"lossless:ROUTE"` for the full model's own
            answers, drafted on fewer layers where that is faster (see `Lossless`); a SequenceController (or its `online`
            form, or its folder), which picks a route for every prompt; a TokenDepth or a token policy. A list has one for
            each prompt. With a controller prompts run untouched by any adapter, and so does the full route; `lossless`
            answers are the untouched model's too.
        routes: with a number, the routes to choose from: a RouteFamily, its file, or a list; default: the best known ones
            (those of the model's adapter, or that were searched for it). With a controller, its own or none.
        prompt_depth: `full` (the prompt, and so the first token, runs every layer) or `route`.
        max_new_tokens: longest answer; default: of `generation_config`, or else 64. An answer also ends where its own
            prompt leaves no more room in the context.
        template: `auto` (the model's chat template where it has one), `chat` or `plain`.
        seed: of sampled answers, any whole number: a prompt gets the same answer whatever stands beside it, and one that is
            repeated gets another each time. Default: drawn from torch's generator.
        stop_strings: texts that end an answer, of which the first to come is the end of its text.
        generation_config: a GenerationConfig or a dict of its fields; keywords win over it, and it over the model's own.
        logits_processor, stopping_criteria: transformers', called with one row at a time, without padding.
        streamer: transformers' TextStreamer, TextIteratorStreamer or the like; for a single prompt.
        on_text: called with pieces of the answer as they come; for a single prompt.
        options: fields of transformers' GenerationConfig: do_sample, temperature, top_k, top_p, min_p, typical_p, top_h,
            epsilon_cutoff, eta_cutoff, repetition_penalty, no_repeat_ngram_size, their encoder_ forms, bad_words_ids,
            sequence_bias, suppress_tokens, begin_suppress_tokens, min_length, min_new_tokens, max_length,
            forced_bos_token_id, forced_eos_token_id, exponential_decay_length_penalty, watermarking_config,
            renormalize_logits, remove_invalid_values, eos_token_id, pad_token_id, guidance_scale, prefill_chunk_size and
            num_return_sequences (sampled answers of each prompt; `n` for short). As in transformers, what nobody gives is
            the model's own generation_config's; and greedy where that does not sample.
            And OpenAI's: presence_penalty and frequency_penalty (-2 to 2; subtracted from the logits of tokens that the
            answer has already, the latter once for each time), logit_bias (a dict of token ids to -100 to 100, which is
            added), and logprobs (how many of the likeliest tokens to tell for each generated one: log-probabilities of the
            model itself, before all of the above).

    Returns:
        One Generation for each prompt, in order; with num_return_sequences so many for each, one after the other, on one
        route, drawn as those of a prompt that is repeated.

    Raises:
        InputError: for a route or controller that does not fit, an empty list, a prompt longer than the context, or an
            argument that is unknown, not honoured, or has a value that cannot be used.

    Warns:
        RouteWarning: once, for a route that the model's adapter was not trained for.

    Example:
        >>> answers = dd.generate(model, tokenizer, ["the cat", "a dog"], depth="80%", max_new_tokens=4)
        >>> [len(answer.tokens) <= 4 for answer in answers]
        [True, True]
    """
    check_call(model, prompt_depth, batch_size)
    requests = read_requests(prompts, messages, template, tokenizer)
    n_prompts = len(requests)
    session = Session.of(model, tokenizer)
    processors = read_functions("logits_processor", logits_processor)
    criteria = read_functions("stopping_criteria", stopping_criteria)
    chosen, limits = read_settings(
        session,
        requests,
        processors,
        max_new_tokens=max_new_tokens,
        stop_strings=stop_strings,
        generation_config=generation_config,
        seed=seed,
        given=options,
    )
    check_streaming(streamer, on_text, n_prompts, chosen.n_answers)
    requests = repeated(requests, chosen.n_answers)
    session = replace(session, chunk_tokens=chosen.prefill_chunk_size)
    job = _Job(
        session,
        tokenizer,
        requests,
        chosen,
        [limit for limit in limits for _ in range(chosen.n_answers)],
        processors,
        criteria,
        streaming(tokenizer, streamer, on_text),
    )
    resolved = resolve_template(template, tokenizer)
    answers: dict[int, Generation] = {}
    for one, own_routes, prompt_places in _by_depth(depth, model, routes, n_prompts):
        places = [place * chosen.n_answers + i for place in prompt_places for i in range(chosen.n_answers)]
        asked = Asked(prompt_depth, resolved, own_routes)
        one.prepare(session, asked)
        for start in range(0, len(places), batch_size):
            answers |= job.answer(places[start : start + batch_size], one, asked)
    return [answers[place] for place in range(len(requests))]


def _by_depth(depth: Any, model: Any, routes: Any, n_prompts: int) -> list[tuple[Depth, Any, list[int]]]:
    """The depths of a call, each with the routes to choose from that are asked of it, and the places of its prompts."""
    if not is_several(depth):
        return [(*_read(depth, model, routes), list(range(n_prompts)))]
    given = one_each(depth, n_prompts, routes)
    # What is written alike is read once, so that a stream's budget is one and a warning comes once.
    groups: dict[Any, list[int]] = {}
    for place, one in enumerate(given):
        groups.setdefault(written_alike(one), []).append(place)
    found = []
    for places in groups.values():
        one = given[places[0]]
        found.append((*_read(one, model, routes if takes_routes(one) else None), places))
    if all(isinstance(one, RouteDepth) for one, _, _ in found):  # which share a pass over the prompts, and their steps
        return [(_Listed({place: one for one, _, places in found for place in places}), None, list(range(n_prompts)))]
    return found


@dataclass(frozen=True)
class _Listed(Depth):
    """Routes by the prompt's place."""

    depths: Mapping[int, RouteDepth]

    @property
    def name(self) -> str:
        return "listed"

    @property
    def n_layers(self) -> int:
        return self.depths[0].n_layers

    def prepare(self, session: Session, asked: Asked) -> None:
        for one in dict.fromkeys(self.depths.values()):
            one.prepare(session, asked)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        full = (batch.full or session.prefill_ids(batch.ids)) if asked.prompt_depth == "full" else None
        return Assignment(tuple(self.depths[key].route.for_sequence(key) for key in batch.keys), full)


def _halves(several: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    middle = (len(several) + 1) // 2
    return several[:middle], several[middle:]


def _read(depth: Any, model: Any, routes: Any) -> tuple[Depth, Any]:
    found = Depth.parse(depth, model, routes)
    return found, None if number_in(depth) is not None else routes


@dataclass(frozen=True)
class _Job:
    """One call of `generate`.

    Attributes:
        limits: most tokens of each request's answer.
        processors, criteria: the caller's.
    """

    session: Session
    tokenizer: Any
    requests: Sequence[Request]
    options: Options
    limits: Sequence[int]
    processors: tuple[Any, ...]
    criteria: tuple[Any, ...]
    streamer: Any

    def answer(self, places: Sequence[int], depth: Depth, asked: Asked) -> dict[int, Generation]:
        """Answers to some of the requests; where memory does not hold all of them at once, half at a time."""
        # The answers to one prompt run on one route.
        batch = Batch([self.requests[place].ids for place in places], [place // self.options.n_answers for place in places])
        try:
            assignment = depth.assign(self.session, batch, asked)
        except Exception as error:
            if not self._splits(places, error):
                raise
            assignment = None
        if assignment is None:  # outside of the handler, whose error holds what takes the memory
            return {place: one for half in _halves(places) for place, one in self.answer(half, depth, asked).items()}
        answers: dict[int, Generation] = {}
        for members in self._together(assignment, places).values():
            answers |= self._decoded(assignment, batch, members, places)
        if assignment.settle is not None:  # the first token of an answer comes out of the prompt's pass
            assignment.settle(np.array([max(len(answers[place].tokens) - 1, 0) for place in places]))
        return answers

    def _together(self, assignment: Assignment, places: Sequence[int]) -> dict[Any, list[int]]:
        """Members of a batch that decode together: all that continue on one pass of one model, where it runs in rows.

        Elsewhere those of one route and one limit, so that none reaches beyond its context while it waits for another.
        """
        groups: dict[Any, list[int]] = {}
        for member, (place, route) in enumerate(zip(places, assignment.routes, strict=True)):
            model = assignment.running(self.session, route).model
            is_row = isinstance(route, Route) and assignment.full is not None and in_rows(model)
            groups.setdefault(id(model) if is_row else (id(model), route, self.limits[place]), []).append(member)
        return groups

    def _decoded(
        self, assignment: Assignment, batch: Batch, members: Sequence[int], places: Sequence[int]
    ) -> dict[int, Generation]:
        try:
            return self._group(assignment, batch, members, [places[i] for i in members])
        except Exception as error:
            if not self._splits([places[i] for i in members], error):
                raise
        halves = (self._decoded(assignment, batch, half, places) for half in _halves(members))
        return {place: answer for half in halves for place, answer in half.items()}

    def _splits(self, places: Sequence[int], error: Exception) -> bool:
        """Whether the requests that an error came up with are to be tried again, half at a time.

        Raises:
            InputError: if memory does not hold a single one.
        """
        if not is_out_of_memory(error):
            return False
        if len(places) == 1:
            raise no_memory(self.requests[places[0]].ids, self.limits[places[0]], error)
        if self.session.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _group(
        self, assignment: Assignment, batch: Batch, members: Sequence[int], chosen: Sequence[int]
    ) -> dict[int, Generation]:
        routes: Any = [assignment.routes[member] for member in members]
        session = assignment.running(self.session, routes[0])
        ready = assignment.prefilled(session, batch, members, routes[0])
        if isinstance(routes[0], TokenDepth):
            routes = [routes[0].for_batch((self.requests[i].ids, self.requests[i].repeat) for i in chosen)] * len(routes)
        started = clock_sec(session.device)
        drafting = self._drafting(assignment)
        sampler = self._decode(session, routes, ready, chosen, drafting)
        decode_sec = clock_sec(session.device) - started
        rows = [sampler.answer(row) for row in range(len(chosen))]
        n_steps = [len(tokens) - 1 for tokens, _ in rows]
        is_tokenwise = isinstance(routes[0], TokenDepth)
        layers = routes[0].mean_layers(n_steps) if is_tokenwise else [float(len(route)) for route in routes]
        told = [None if drafting is None else drafting.told(row) for row in range(len(rows))]
        layers = [
            ran if one is None or not one.layers_run else one.layers_run / n
            for ran, one, n in zip(layers, told, n_steps, strict=True)
        ]
        return {
            place: Generation(
                prompt=self.requests[place].prompt,
                text=self.tokenizer.decode(tokens, skip_special_tokens=True),
                tokens=tuple(tokens),
                route=routes[row],
                finish_reason=reason,
                prefill_sec=ready.prefill_sec,
                decode_sec=decode_sec,
                batch_size=len(chosen),
                layers_run=ran,
                logprobs=sampler.logprobs(row),
                speculation=told[row],
                **(vars(assignment.reasons[member]) if assignment.reasons else {}),
            )
            for row, (member, place, (tokens, reason), ran) in enumerate(zip(members, chosen, rows, layers, strict=True))
        }

    def _decode(
        self,
        session: Session,
        routes: Sequence[Running],
        ready: Prefill,
        places: Sequence[int],
        drafting: Drafting | None,
    ) -> Sampler:
        """The answers that come behind prompts; all of them when the sampler is returned."""
        rows = [self._row_sampler(place, ready.logits.shape[-1]) for place in places]
        sampler, streamer = Sampler(rows, n_logprobs=self.options.logprobs), self.streamer
        if streamer is not None:
            streamer.put(ready.input_ids.cpu())
        running: Any = routes[0] if len(set(routes)) == 1 else routes  # unlike ones are routes, as rows have them
        decode_tokens(
            session.model,
            running,
            ready,
            sampler,
            max_new_tokens=max(self.limits[place] for place in places),
            pad_token_id=self.options.pad_token_id,
            on_tokens=None if streamer is None else lambda tokens: streamer.put(tokens.cpu()),
            guidance=self._guidance(session, ready),
            drafting=drafting,
        )
        if streamer is not None:
            streamer.end()
        return sampler

    def _drafting(self, assignment: Assignment) -> Drafting | None:
        """What drafts, unless drafts would be seen by what keeps count of the tokens that it is shown."""
        found = assignment.drafting
        if found is not None and self.options.guidance_scale is not None:
            found.why_off = GUIDED
        elif found is not None and (self.processors or "watermarking_config" in self.options.values):
            found.why_off = PROCESSED
        return found

    def _guidance(self, session: Session, ready: Prefill) -> Guidance | None:
        """As in transformers, away from what follows the prompt's last token alone."""
        if self.options.guidance_scale is None:
            return None
        last = [[token] for token in ready.input_ids[:, -1].tolist()]
        return Guidance(self.options.guidance_scale, session.prefill_ids(last, ready.route))

    def _row_sampler(self, place: int, vocabulary: int) -> RowSampler:
        asked, seed = self.requests[place], self.options.seed
        return RowSampler.from_options(
            self.options,
            self.tokenizer,
            Row(torch.tensor([asked.ids], device=self.session.device), self.limits[place], vocabulary, self.options.ends),
            chance=None if seed is None else Chance.of_request(seed, asked.ids, asked.repeat),
            processors=self.processors,
            criteria=self.criteria,
        )
