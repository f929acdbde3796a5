"""Chat templates: conversations as the tokens that a model's own template makes of them, or one sentence why not.

A template is code that came with a checkpoint. It may fail on what it was not written for, expect a message's content as a
list of parts, or leave a message out without a word; so a conversation is also rendered with marks in the place of its
texts, and each mark must come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from depthdial.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

# Longer reasons (a template's whole source, say) are cut.
_MOST_REASON = 200
# What a text is replaced by to see whether it comes out: letters that no filter of a template changes but for their case.
_MARK = "depthdialmark"


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def user_ids(self, text: str) -> list[int]:
        """Token ids of one user message and the cue to answer it.

        Raises:
            InputError: if the template fails on it, or leaves it out.
        """
        content = _parted(text) if self._user_in_parts else text
        return self._ids([{"role": "user", "content": content}], _ELSE_PLAIN)

    def render(self, conversation: Sequence[Message]) -> tuple[str, list[int]]:
        """(text, token ids) of a conversation and the cue to answer it; one whose last message is the assistant's is
        continued there, without a cue.

        Raises:
            InputError: if the template fails on the conversation, or leaves a user's or system message out.
        """
        as_given = [{**message, "content": _joined(message.get("content"))} for message in conversation]
        as_parts = [{**message, "content": _parted(message.get("content"))} for message in conversation]
        chosen = as_parts if self._wants_parts(as_given, as_parts, _ELSE_OTHERS) else as_given
        return self._rendered(chosen, _ELSE_OTHERS, tokenize=False), self._ids(chosen, _ELSE_OTHERS)

    @cached_property
    def _user_in_parts(self) -> bool:
        one = {"role": "user"}
        return self._wants_parts([{**one, "content": "a"}], [{**one, "content": _parted("a")}], _ELSE_PLAIN)

    def _wants_parts(self, as_texts: list[Any], as_parts: list[Any], remedy: str) -> bool:
        """Whether the template takes content as parts; InputError if it takes the messages neither way."""
        named = self.tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            names = ", ".join(map(repr, sorted(named)))
            raise InputError(
                f"The tokenizer names several chat templates ({names}) and none of them is the default: set "
                "tokenizer.chat_template to one of them, or use the template 'plain'."
            )
        try:
            self._require_whole(as_texts, remedy)
            return False
        except InputError as error:
            of_texts = error
        try:
            self._require_whole(as_parts, remedy)
            return True
        except InputError:  # texts are what most templates take: their reason tells more
            raise of_texts from of_texts.__cause__

    def _require_whole(self, conversation: list[Any], remedy: str) -> None:
        """InputError unless every user's and system message comes out."""
        marks = [f"{_MARK}{i}x" for i in range(len(conversation))]
        marked = [
            {**message, "content": _parted(mark) if isinstance(message["content"], list) else mark}
            for message, mark in zip(conversation, marks, strict=True)
        ]
        text = self._rendered(marked, remedy, tokenize=False).lower()
        for i, (message, mark) in enumerate(zip(conversation, marks, strict=True)):
            role = message["role"]
            if role in ("user", "system") and mark not in text:
                which = f"the {role} message" if len(conversation) == 1 else f"message {i} ({role})"
                raise InputError(f"The tokenizer's chat template leaves {which} out of the prompt: {remedy}.")

    def _ids(self, conversation: list[Any], remedy: str) -> list[int]:
        options = {"return_dict": True, "tokenizer_kwargs": {"verbose": False}}
        return list(self._rendered(conversation, remedy, tokenize=True, **options)["input_ids"])

    def _rendered(self, conversation: list[Any], remedy: str, **options: Any) -> Any:
        goes_on = conversation[-1]["role"] == "assistant"
        turn = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
        try:
            return self.tokenizer.apply_chat_template(conversation, **turn, **options)
        except Exception as error:  # the checkpoint's code: it may raise anything
            reason = " ".join(str(error).split())[:_MOST_REASON].rstrip(".") or type(error).__name__
            what = "a user message" if remedy == _ELSE_PLAIN else "these messages"
            raise InputError(f"The tokenizer's chat template refused {what} ({reason}): {remedy}.") from error


_ELSE_PLAIN = "use the template 'paper' or 'plain'"
_ELSE_OTHERS = "give messages that it takes, or prompts with the template 'plain'"


def check_conversation(conversation: Any) -> list[Message]:
    """A conversation as a list of messages, once it is sure to be one.

    Raises:
        InputError: if it is no list of messages with a role and a text, or one of them has parts that are no text.
    """
    if not isinstance(conversation, list | tuple) or not conversation:
        raise InputError(
            "Messages are a list such as [{'role': 'user', 'content': 'Hello.'}], or a list of such lists, not "
            f"{_short(conversation)}: give at least one message."
        )
    for place, message in enumerate(conversation):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"Message {place} is {_short(message)}: write it as {{'role': 'user', 'content': 'Hello.'}}.")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        parts = [{"text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not parts:
            raise InputError(f"The content of message {place} is {_short(content)}: give its text.")
        for part in parts:
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise InputError(f"Message {place} has a part of type {kind!r}: give text, for only text is read here.")
            check_encodable(part["text"], f"Message {place}")
    return list(conversation)


def check_encodable(text: str, what: str = "The prompt") -> None:
    """InputError for a text with half of a character: no tokenizer can encode a lone surrogate."""
    place = next((i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if place is not None:
        raise InputError(
            f"{what} has half of a character, the lone surrogate {text[place]!r}, at place {place}: decode it with "
            "errors='replace', or leave it out."
        )


def _joined(content: Any) -> Any:
    """Content as one text."""
    return content if content is None or isinstance(content, str) else "".join(part["text"] for part in content)


def _parted(content: Any) -> Any:
    """Content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content and [dict(p) for p in content]


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
