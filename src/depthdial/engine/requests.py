"""Requests: prompts or chat messages, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from depthdial.data.chat import ChatTemplate, check_conversation
from depthdial.data.templates import Prompter, resolve_template
from depthdial.errors import InputError


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        prompt: what the caller wrote; of messages, the text that the chat template made of them.
        repeat: how many requests before it in the list have the same ids.
    """

    prompt: str
    ids: tuple[int, ...]
    repeat: int = 0


def read_requests(
    prompts: Any, messages: Any, template: str, tokenizer: Any, prompt_ids: Any = None, vocabulary: int | None = None
) -> list[Request]:
    """The requests of one call, in order.

    Args:
        prompt_ids: the tokens of one prompt, in the place of prompts or messages.
        vocabulary: how many tokens the model has; None where that is not checked.

    Raises:
        InputError: for prompts and messages together, none of them, or what cannot be encoded.
    """
    if sum(given is None for given in (prompts, messages, prompt_ids)) != 2:
        raise InputError("Generation answers either prompts or messages: give one of them.")
    if prompt_ids is not None:
        found = [_from_ids(prompt_ids, vocabulary, tokenizer)]
    elif messages is not None:
        found = _from_messages(messages, template, tokenizer)
    else:
        found = _from_prompts(prompts, template, tokenizer)
    requests = []
    for place, (text, ids) in enumerate(found):
        if not ids:
            which = "A prompt is empty" if len(found) == 1 else f"Prompt {place} of {len(found)} is empty"
            raise InputError(f"{which}: write something to answer.")
        requests.append(Request(text, tuple(ids)))
    return repeated(requests, 1)


def repeated(requests: Sequence[Request], n_answers: int) -> list[Request]:
    """Each request so many times, one after the other, as from a list that has its prompt so many times."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for request in (one for one in requests for _ in range(n_answers)):
        found.append(replace(request, repeat=seen.setdefault(request.ids, 0)))
        seen[request.ids] += 1
    return found


def _from_prompts(prompts: Any, template: str, tokenizer: Any) -> list[tuple[str, list[int]]]:
    if isinstance(prompts, str):
        texts: list[Any] = [prompts]
    else:
        texts = list(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, bytes) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("Prompts are a text or a list of texts: give at least one.")
    prompter = Prompter(resolve_template(template, tokenizer), "prompt", tokenizer)
    return [(text, prompter.ids(text)) for text in texts]


def _from_messages(messages: Any, template: str, tokenizer: Any) -> list[tuple[str, list[int]]]:
    if template not in ("auto", "chat"):
        raise InputError(
            f"Messages need the tokenizer's chat template, not {template!r}: leave template out, or give prompts."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("This tokenizer has no chat template, which messages need: give prompts instead.")
    is_one = not isinstance(messages, list | tuple) or not messages or isinstance(messages[0], Mapping | str)
    conversations = [messages] if is_one else messages
    chat = ChatTemplate(tokenizer)
    return [chat.render(check_conversation(one)) for one in conversations]


def _from_ids(ids: Any, vocabulary: int | None, tokenizer: Any) -> tuple[str, list[int]]:
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes) or not all(map(_is_whole, ids)):
        raise InputError("A prompt's tokens are a list of token ids, whole numbers from 0: give such as [5, 17].")
    unknown = next((i for i in ids if i < 0 or (vocabulary is not None and i >= vocabulary)), None)
    if unknown is not None:
        last = "" if vocabulary is None else f", and the model's end at {vocabulary - 1}"
        raise InputError(f"Token {unknown} is not in the vocabulary: token ids begin at 0{last}.")
    return tokenizer.decode(list(ids)), [int(i) for i in ids]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
