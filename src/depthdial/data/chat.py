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


class _TemplateFailedError(Exception):
    """A template raised; the message is its reason in one line."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def user_ids(self, text: str) -> list[int]:
        """Token ids of one user message and the cue to answer it.

        Raises:
            InputError: if the template fails on it, or leaves it out.
        """
        return self._ids([{"role": "user", "content": self._content(text)}], _ELSE_PLAIN)

    def render(self, conversation: Sequence[Message]) -> tuple[str, list[int]]:
        """(text, token ids) of a conversation and the cue to answer it; one whose last message is the assistant's is
        continued there, without a cue.

        Raises:
            InputError: if the template fails on the conversation, or leaves a user's or system message out.
        """
        given = list(conversation)
        as_given = [{**message, "content": _joined(message.get("content"))} for message in given]
        as_parts = [{**message, "content": _parted(message.get("content"))} for message in given]
        chosen = as_parts if self._wants_parts(as_given, as_parts, _ELSE_OTHERS) else as_given
        try:
            text = self._rendered(chosen, tokenize=False)
        except _TemplateFailedError as error:  # on these texts, and not on the marks
            raise self._refusal(error, _ELSE_OTHERS) from error
        return text, self._ids(chosen, _ELSE_OTHERS)

    def _content(self, text: str) -> Any:
        return _parted(text) if self._user_in_parts else text

    @cached_property
    def _user_in_parts(self) -> bool:
        one = {"role": "user"}
        return self._wants_parts([{**one, "content": "a"}], [{**one, "content": _parted("a")}], _ELSE_PLAIN)

    def _wants_parts(self, as_texts: list[Any], as_parts: list[Any], remedy: str) -> bool:
        """Whether the template takes content as parts; InputError if it takes the messages neither way."""
        self._require_default()
        try:
            left_out = self._left_out(as_texts)
            if left_out is None:
                return False
            failed = None
        except _TemplateFailedError as error:
            left_out, failed = None, error
        try:
            if self._left_out(as_parts) is None:
                return True
        except _TemplateFailedError:
            pass  # texts are what most templates take: their reason tells more
        if failed is not None:
            raise self._refusal(failed, remedy) from failed
        assert left_out is not None
        role = as_texts[left_out]["role"]
        which = f"the {role} message" if len(as_texts) == 1 else f"message {left_out} ({role})"
        raise InputError(f"The tokenizer's chat template leaves {which} out of the prompt: {remedy}.")

    def _left_out(self, conversation: list[Any]) -> int | None:
        """The place of a user's or system message that does not come out; None if all do."""
        marks = [f"{_MARK}{i}x" for i in range(len(conversation))]
        marked = [
            {**message, "content": _parted(mark) if isinstance(message["content"], list) else mark}
            for message, mark in zip(conversation, marks, strict=True)
        ]
        text = self._rendered(marked, tokenize=False).lower()
        roles = [message["role"] for message in conversation]
        heard = [role in ("user", "system") for role in roles]
        return next((i for i, mark in enumerate(marks) if heard[i] and mark not in text), None)

    def _ids(self, conversation: list[Any], remedy: str) -> list[int]:
        try:
            encoded = self._rendered(conversation, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False})
        except _TemplateFailedError as error:
            raise self._refusal(error, remedy) from error
        return list(encoded["input_ids"])

    def _rendered(self, conversation: list[Any], **options: Any) -> Any:
        goes_on = conversation[-1]["role"] == "assistant"
        turn = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
        try:
            return self.tokenizer.apply_chat_template(conversation, **turn, **options)
        except Exception as error:  # the checkpoint's code: it may raise anything
            reason = " ".join(str(error).split())[:_MOST_REASON].rstrip(".") or type(error).__name__
            raise _TemplateFailedError(reason) from error

    def _require_default(self) -> None:
        named = self.tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            names = ", ".join(map(repr, sorted(named)))
            raise InputError(
                f"The tokenizer names several chat templates ({names}) and none of them is the default: set "
                "tokenizer.chat_template to one of them, or use the template 'plain'."
            )

    @staticmethod
    def _refusal(error: _TemplateFailedError, remedy: str) -> InputError:
        what = "a user message" if remedy == _ELSE_PLAIN else "these messages"
        return InputError(f"The tokenizer's chat template refused {what} ({error}): {remedy}.")


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
        _check_content(place, message)
    return list(conversation)


def check_encodable(text: str, what: str = "The prompt") -> None:
    """InputError for a text with half of a character: no tokenizer can encode a lone surrogate."""
    place = next((i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if place is not None:
        raise InputError(
            f"{what} has half of a character, the lone surrogate {text[place]!r}, at place {place}: decode it with "
            "errors='replace', or leave it out."
        )


def _check_content(place: int, message: Message) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if isinstance(content, str):
        check_encodable(content, f"Message {place}")
        return
    if isinstance(content, list | tuple) and content:
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise InputError(f"Message {place} has a part of type {kind!r}: give text, for only text is read here.")
            check_encodable(part["text"], f"Message {place}")
        return
    raise InputError(f"The content of message {place} is {_short(content)}: give its text.")


def _joined(content: Any) -> Any:
    """Content as one text."""
    return content if content is None or isinstance(content, str) else "".join(part["text"] for part in content)


def _parted(content: Any) -> Any:
    """Content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content and [dict(p) for p in content]


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
