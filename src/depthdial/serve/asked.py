"""A request's fields as arguments of `Engine.submit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdial.data.chat import check_conversation, check_encodable
from depthdial.engine.engine import Engine
from depthdial.engine.requests import read_requests
from depthdial.errors import InputError
from depthdial.serve.errors import ApiError
from depthdial.serve.schemas import ChatRequest, Message, SamplingRequest

_GREEDY_BELOW = 1e-4  # dividing by less overflows; what it would choose is the greedy token anyway
_OPENAI_TEMPERATURE = 1.0


def chat_ids(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a chat, by the tokenizer's own template.

    Raises:
        ApiError: for messages that the template refuses.
    """
    try:
        conversation = check_conversation([message.as_conversation() for message in messages])
        return read_requests(None, conversation, "auto", tokenizer)[0].ids
    except InputError as error:
        raise refused(error, "messages") from error


def bare_ids(text: str, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a text without any that the tokenizer adds.

    Raises:
        ApiError: for half of a character.
    """
    try:
        check_encodable(text)
    except InputError as error:
        raise refused(error, "prompt") from error
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def text_ids(prompt: str | Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a raw prompt: with the special tokens that the tokenizer puts first, or as they are given.

    Raises:
        ApiError: for an empty prompt, or half of a character.
    """
    if not isinstance(prompt, str):
        return tuple(prompt)
    try:
        return read_requests(prompt, None, "plain", tokenizer)[0].ids
    except InputError as error:
        raise refused(error, "prompt") from error


def answer_limit(body: SamplingRequest, limit: int | None, n_prompt: int, engine: Engine, most: int) -> int:
    """The most tokens of an answer; where a request does not say, as many as there is room for.

    Args:
        limit: what the request asks for.
        most: the server's limit.

    Raises:
        ApiError: for a prompt that leaves no room, or more than the server's limit.
    """
    context = engine.context_tokens
    room = most if context is None else context - n_prompt
    if room < 1:
        raise ApiError(
            400,
            f"The prompt has {n_prompt} tokens and the model's context is {context}: shorten it.",
            param="messages" if isinstance(body, ChatRequest) else "prompt",
            code="context_length_exceeded",
        )
    if limit is not None and limit > most:
        raise ApiError(
            400,
            f"The field max_tokens={limit} exceeds this server's limit of {most}: ask for less.",
            param="max_tokens",
            code="invalid",
        )
    return min(room, most if limit is None else limit)


def options(body: SamplingRequest, ends: Sequence[int]) -> dict[str, Any]:
    """Keyword arguments of `Engine.submit` beside prompt, depth and length.

    What a request leaves out has OpenAI's value (temperature 1, no truncation), and not what a checkpoint suggests.

    Args:
        ends: the model's end tokens.
    """
    temperature = _OPENAI_TEMPERATURE if body.temperature is None else body.temperature
    given: dict[str, Any] = {
        "stop_strings": body.stops or None,
        "stop_in_answer": True,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": body.logit_bias or None,
        "n": body.n,
    }
    if temperature >= _GREEDY_BELOW:
        top_k = 0 if body.top_k is None or body.top_k < 0 else body.top_k
        top_p = 1.0 if body.top_p is None else body.top_p
        given |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": body.seed}
        given |= {"min_p": body.min_p} if body.min_p else {}
    else:
        given |= {"do_sample": False}
    if body.ignore_eos:
        given["eos_token_id"] = list(body.stop_token_ids) if body.stop_token_ids else None
        return _without_none(given, keep=("eos_token_id",))
    if body.stop_token_ids:
        given["eos_token_id"] = [*ends, *body.stop_token_ids]
    if body.min_tokens:
        given["min_new_tokens"] = body.min_tokens
    return _without_none(given)


def end_tokens(body: SamplingRequest, ends: Sequence[int]) -> frozenset[int]:
    """Tokens that end an answer to a request, and are no part of its text."""
    return frozenset((*(() if body.ignore_eos else ends), *(body.stop_token_ids or ())))


def refused(error: InputError, param: str | None = None) -> ApiError:
    return ApiError(400, str(error), param=param, code="invalid")


def _without_none(given: dict[str, Any], keep: Sequence[str] = ()) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None or name in keep}
