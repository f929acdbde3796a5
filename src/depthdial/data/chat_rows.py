"""Conversations in the rows of a data set: lists of messages under any of the usual names, as (role, text) pairs.

| shape                                                             | known from                              |
| ----------------------------------------------------------------- | --------------------------------------- |
| `[{"role": "user", "content": ".."}, ..]`                         | OpenAI, TRL                             |
| `[{"from": "human", "value": ".."}, ..]`                          | ShareGPT                                |
| `{"role": [..], "content": [..]}`                                 | older versions of `datasets`            |
| the first of these as JSON text                                   | CSV files                               |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from depthdial.data.templates import Messages
from depthdial.errors import InputError

_ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
_SPEAKERS, _TEXTS = ("role", "from"), ("content", "value")


def is_conversation(value: Any) -> bool:
    """Whether a value of a row is a list of messages."""
    messages = _listed(value)
    return messages is not None and all(_speaker(message) is not None for message in messages)


def read_conversation(value: Any, where: str) -> Messages:
    """The messages of a value for which `is_conversation` holds; turns without text, as None, are left out if no call stands
    in them.

    Raises:
        InputError: for a role that is unknown, content that is no text, or a call of a tool, which has none; `where` begins
            the message.
    """
    read = [_message(message, where) for message in _listed(value) or ()]
    return tuple((role, text) for role, text in read if text is not None)


def split_reply(messages: Messages) -> tuple[Messages, str | None]:
    """A conversation up to the reply that it ends with, and that reply; None where somebody else has the last word."""
    if messages and messages[-1][0] == "assistant":
        return messages[:-1], messages[-1][1]
    return messages, None


def last_reply(messages: Messages) -> str | None:
    """What the assistant said last."""
    return next((text for role, text in reversed(messages) if role == "assistant"), None)


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        if len(columns) < len(value) or len({len(column) for column in columns.values()}) != 1:
            return None
        value = [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]
    return value if isinstance(value, list) and value else None


def _speaker(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return None
    return next((message[key] for key in _SPEAKERS if isinstance(message.get(key), str)), None)


def _message(message: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    speaker = _speaker(message)
    role = _ROLES.get(speaker.strip().lower())
    if role is None:
        raise InputError(f"{where} has a message from {speaker!r}: call the roles system, user, assistant or tool.")
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError(f"{where} has a message that calls a tool, which is not text: leave the row out.")
    content = next((message[key] for key in _TEXTS if message.get(key) is not None), None)
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"{where} has a message with a part that is not text: leave the row out.")
        content = "".join(parts)  # type: ignore[arg-type]
    if content is not None and not isinstance(content, str):
        raise InputError(f"{where} has a message whose content is of type {type(content).__name__}: give text.")
    return role, content
