"""Answers to prompts: one full prefill of a batch, then shallow decoding, grouped by the route that each prompt takes.

The route is the caller's, or a controller's that reads the prompt's hidden states on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.errors import InputError, check_choice
from depthdial.generation.choosing import Chooser, Controller, choosing
from depthdial.measure.batches import Runner
from depthdial.measure.forced import by_route
from depthdial.measure.plan import check_positive
from depthdial.measure.templates import Prompter, resolve_template
from depthdial.models.decode import FinishReason, cut_at_end
from depthdial.models.prompt import PROMPT_DEPTHS, Prefill, clock_sec, quiet_prompted_view
from depthdial.routes import AnyRoute, Route


@dataclass(frozen=True)
class Generation:
    """One answer and how it was made.

    Attributes:
        text: the answer without special tokens; `tokens` has them.
        route: the layers that ran for response tokens; `len(route)` of `route.n_layers`.
        prefill_sec, decode_sec: measured seconds of the batch that it was part of.
        batch_size: how many sequences that batch decoded together.
        predicted: why a controller took this route: the quality that it predicted of each, by name. None without one.
        price: what it asked of a route for each unit of cost, in quality. None without a controller.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    route: Route
    finish_reason: FinishReason
    prefill_sec: float
    decode_sec: float
    batch_size: int
    predicted: Mapping[str, float] | None = None
    price: float | None = None

    @property
    def new_tokens(self) -> int:
        return len(self.tokens)

    @property
    def tokens_per_sec(self) -> float:
        """Of decoding alone: the first token comes out of the prefill."""
        return (self.new_tokens - 1) / self.decode_sec if self.decode_sec > 0 else float("nan")


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    depth: AnyRoute | str | float | Controller = "full",
    routes: Any = None,
    prompt_depth: str = "full",
    max_new_tokens: int = 64,
    template: str = "auto",
    batch_size: int = 16,
    on_text: Callable[[str], None] | None = None,
    **sampling: Any,
) -> list[Generation]:
    """Answer prompts with only some of a model's layers.

    Args:
        depth: a Route, its text (`"uls:50%"`), or a random rule, drawn once for each prompt by its place in the list; a
            number such as 0.5 for the best known route of at most half of the layers; or a SequenceController (or its
            `online` form), which picks a route for every prompt. With a controller prompts run untouched by any adapter,
            and so does the full route.
        routes: with a number, the routes to choose from: a RouteFamily, its file, or a list; default: the best known ones
            (those of the model's adapter, or that were searched for it). With a controller, its own or none.
        prompt_depth: `full` (the prompt, and so the first token, runs every layer) or `route`.
        template: `auto` (the model's chat template where it has one), `chat` or `plain`.
        on_text: called with pieces of the answer as they come; for a single prompt.
        sampling: fields of transformers' GenerationConfig, such as do_sample=True, temperature=0.7. Default: greedy.

    Returns:
        One Generation for each prompt, in order.

    Raises:
        InputError: for a route or controller that does not fit, an empty list, a prompt longer than the context, or an
            unknown argument.

    Warns:
        RouteWarning: once, for a route that the model's adapter was not trained for.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    _check(prompts, prompt_depth, on_text)
    check_positive(max_new_tokens, "max_new_tokens")
    check_positive(batch_size, "batch_size")
    runner = Runner.of(model, tokenizer)
    chooser = choosing(depth, runner, routes, prompt_depth, resolve_template(template, tokenizer))
    config = _generation_config(runner, max_new_tokens, sampling)
    prompter = Prompter(resolve_template(template, tokenizer), "prompt", tokenizer)
    encoded = [prompter.ids(prompt) for prompt in prompts]
    _check_context(encoded, runner.context_tokens)
    answers: list[Generation] = []
    for start in range(0, len(prompts), batch_size):
        places = range(start, min(start + batch_size, len(prompts)))
        answers += _answer_batch(runner, tokenizer, prompts, encoded, places, chooser, config, on_text)
    return answers


def _answer_batch(
    runner: Runner,
    tokenizer: Any,
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    places: range,
    chooser: Chooser,
    config: Any,
    on_text: Callable[[str], None] | None,
) -> list[Generation]:
    answers: dict[int, Generation] = {}
    own = config.eos_token_id  # the caller's, where one was given
    ends = [] if own is None else own if isinstance(own, list) else [own]
    batch = [encoded[i] for i in places]
    choice = chooser(batch, places)
    for one, members in by_route(choice.routes).items():
        chosen = [places[m] for m in members]
        on = choice.running(runner, one)
        ready = choice.prefilled(on, batch, members, one)
        streamer = None if on_text is None else _Pieces(tokenizer, on_text)
        started = clock_sec(runner.device)
        rows = _decode(on, one, ready, config, streamer)
        decode_sec = clock_sec(runner.device) - started
        for m, i, tokens in zip(members, chosen, rows, strict=True):
            tokens, reason = cut_at_end(tokens, ends)
            answers[i] = Generation(
                prompt=prompts[i],
                text=tokenizer.decode(tokens, skip_special_tokens=True),
                tokens=tuple(tokens),
                route=one,
                finish_reason=reason,
                prefill_sec=ready.prefill_sec,
                decode_sec=decode_sec,
                batch_size=len(chosen),
                **choice.why(m),
            )
    return [answers[i] for i in places]


def _decode(runner: Runner, route: Route, ready: Prefill, config: Any, streamer: Any) -> list[list[int]]:
    view = quiet_prompted_view(runner.model, route, ready)
    view.generation_config = copy.copy(config)
    view.generation_config.max_new_tokens = min(runner.rooms(ready, config.max_new_tokens))
    output: Any = view.generate(ready.input_ids, attention_mask=ready.attention_mask, streamer=streamer)  # type: ignore[operator]
    return output[:, ready.input_ids.shape[1] :].tolist()


def _generation_config(runner: Runner, max_new_tokens: int, sampling: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict().keys() - {"num_return_sequences", "transformers_version"}
    # True equals 1, which is one beam.
    several = next((n for n in _SEVERAL if sampling.get(n) is True or sampling.get(n) not in (None, 1, False)), None)
    if several is not None:
        raise InputError(f"generate() makes one answer to a prompt, token by token: leave {several} out.")
    unknown = next((name for name in sampling if name not in known), None)
    if unknown is not None:
        raise InputError(f"generate() has no argument {unknown!r}: sampling arguments are those of GenerationConfig.")
    ends, pad = list(runner.eos_token_ids) or None, runner.pad_token_id
    return GenerationConfig(
        **{"do_sample": False, "eos_token_id": ends, "pad_token_id": pad, **sampling, "max_new_tokens": max_new_tokens}
    )


def _check(prompts: Sequence[Any], prompt_depth: str, on_text: Any) -> None:
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("Prompts are a text or a list of texts: give at least one.")
    check_choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    if on_text is not None and len(prompts) > 1:
        raise InputError("Text can be streamed for one prompt at a time: leave on_text out, or give one prompt.")


def _check_context(encoded: Sequence[Sequence[int]], context_tokens: int | None) -> None:
    longest = max(map(len, encoded))
    if min(map(len, encoded)) == 0:
        raise InputError("A prompt is empty: write something to answer.")
    if context_tokens is not None and longest >= context_tokens:
        raise InputError(f"A prompt has {longest} tokens but the model's context is {context_tokens}: shorten it.")


# Of GenerationConfig: what would give other things than one answer for each prompt.
_SEVERAL = ("num_beams", "num_beam_groups", "return_dict_in_generate", "max_length")


class _Pieces:
    """A streamer for transformers' generate: decodes as tokens come and passes on whole characters."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._sent = 0
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate() first hands over the prompt
            self._prompt_seen = True
            return
        self._tokens += value.flatten().tolist()
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is still to come
            self._send(text)

    def end(self) -> None:
        self._send(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            self._on_text(text[self._sent :])
            self._sent = len(text)
