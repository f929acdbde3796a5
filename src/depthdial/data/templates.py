"""Templates: how an example becomes the tokens of a prompt, and how a long document is cut to a token budget.

| template | the prompt                                                                                              |
| -------- | ------------------------------------------------------------------------------------------------------- |
| `chat`   | the tokenizer's own chat template around one user message: instruction and input, or a request to       |
|          | summarise and the document                                                                              |
| `paper`  | the paper's forms (arXiv 2410.20022): Stanford Alpaca's instruction/input/response, and                 |
|          | "### Article:" / "### Summary:"; a bare prompt stays as it is                                           |
| `plain`  | the text as it is                                                                                       |
| `auto`   | `chat` where the tokenizer has a chat template, else `paper`                                            |

A conversation (a system message, or several turns) goes through the chat template as it is; without one, `paper` writes it
as "User: ..", "Assistant: .." and `plain` puts its turns one after the other, with an empty line between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from depthdial.checks import choice
from depthdial.data.chat import ChatTemplate, check_encodable
from depthdial.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "paper", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

# What an example is: an instruction (with or without an input), a document to summarise, or a prompt to leave alone.
Form = Literal["instruction", "article", "dialogue", "prompt"]

# A conversation up to the reply that is asked for: (role, text) of each message, roles as chat templates know them.
Messages = tuple[tuple[str, str], ...]

# Stanford Alpaca's words to the letter: models were fine-tuned on exactly these.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_SUMMARY_HEADING = {"article": "### Article:", "dialogue": "### Dialogue:"}
_SUMMARY_REQUEST = {
    "article": "Summarize the following article in three or four sentences.",
    "dialogue": "Summarize the following dialogue in one or two sentences.",
}


def check_template(template: str) -> Template:
    """`template` itself if it is known; InputError otherwise."""
    return choice("template", template, TEMPLATES)


def resolve_template(template: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `template` stands for with this tokenizer: never `auto`.

    Raises:
        InputError: if the template is unknown, or is `chat` and the tokenizer has no chat template.
    """
    known = check_template(template)
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if known == "auto":
        return "chat" if has_chat else "paper"
    if known == "chat" and not has_chat:
        raise InputError("This tokenizer has no chat template: use the template 'paper' or 'plain'.")
    return known


@dataclass(frozen=True)
class Prompter:
    """Makes the prompts of one form of examples with one template.

    Attributes:
        template: a resolved one (see `resolve_template`).
        form: what the examples are.
        tokenizer: that of the model which will read the prompts.
    """

    template: Template
    form: Form
    tokenizer: PreTrainedTokenizerBase

    def text(self, instruction: str, document: str = "") -> str:
        """The prompt as text; with `chat`, the user message that the chat template then wraps."""
        if self.template == "paper":
            return self._paper_text(instruction, document)
        request = _SUMMARY_REQUEST.get(self.form, "") if self.template == "chat" else ""
        return "\n\n".join(part for part in (request, instruction, document) if part)

    def ids(self, instruction: str, document: str = "", messages: Messages = ()) -> list[int]:
        """Token ids of the prompt, ready for the response to follow.

        With `messages`, a conversation, the prompt is that, and `instruction` the text of its last message.

        A chat prompt is exactly what `apply_chat_template(..., add_generation_prompt=True)` gives. The others carry the
        special tokens that the tokenizer puts first; an end of sequence that it puts last is left out, for it would tell
        the model that there is nothing to answer.

        Raises:
            InputError: if the chat template refuses the message or leaves it out, or the text has a lone surrogate.
        """
        if messages:
            said = (*messages[:-1], (messages[-1][0], instruction))
            if self.template == "chat":
                return self._chat.render([{"role": role, "content": text} for role, text in said])[1]
            text = self._transcript(said)
        else:
            text = self.text(instruction, document)
        check_encodable(text)
        if self.template == "chat":
            return self._chat.user_ids(text)
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        if ids[:2] == [self.tokenizer.bos_token_id] * 2 and text.startswith(str(self.tokenizer.bos_token)):
            ids.pop(0)  # the text has it already, as one that a chat template has written
        eos = str(self.tokenizer.eos_token)
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(eos):
            ids.pop()
        return ids

    def fitted_ids(self, instruction: str, document: str, max_tokens: int | None, messages: Messages = ()) -> list[int]:
        """Token ids of the prompt within a budget.

        What is cut is the end of the document, or of the instruction where there is no document or cutting all of it is
        not enough; of a conversation, the end of its last message. Never the template around them: the prompt still ends
        with its cue for the response.

        Args:
            max_tokens: the budget in tokens of the whole prompt, template and special tokens counted; None for any length.

        Raises:
            InputError: if the template alone takes more than the budget.
        """
        ids = self.ids(instruction, document, messages)
        if max_tokens is None or len(ids) <= max_tokens:
            return ids
        if document and (kept := _longest_fit(document, lambda part: self.ids(instruction, part), max_tokens)):
            return kept
        if kept := _longest_fit(instruction, lambda part: self.ids(part, "", messages), max_tokens):
            return kept
        alone = "template and all messages but the last take" if messages else f"{self.template} template alone takes"
        n_tokens = len(self.ids("", "", messages))
        raise InputError(f"The {alone} {n_tokens} tokens, more than the {max_tokens} of max_prompt_tokens: raise it.")

    def _transcript(self, messages: Messages) -> str:
        if self.template == "plain":
            return "\n\n".join(text for _, text in messages)
        turns = [f"{role.capitalize()}: {text}" for role, text in messages]
        return "\n\n".join([*turns, "Assistant:"])

    def _paper_text(self, instruction: str, document: str) -> str:
        if self.form == "prompt":
            return instruction
        if self.form in _SUMMARY_HEADING:
            return f"{_SUMMARY_HEADING[self.form]}\n{document}\n### Summary:\n"
        if document:
            task = f"{_ALPACA_WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{document}"
        else:
            task = f"{_ALPACA}\n\n### Instruction:\n{instruction}"
        return f"{task}\n\n### Response:"

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)


def _longest_fit(text: str, ids_of: Callable[[str], list[int]], max_tokens: int) -> list[int]:
    """Ids made of the longest beginning of `text` that keeps them within `max_tokens`; empty if none does.

    Works with any tokenizer, for it only counts; every other guess is by interpolation, so that a long document takes a
    handful of passes and the worst case is that of halving.
    """
    short, best = 0, ids_of("")
    long, long_tokens = len(text), len(ids_of(text))
    if len(best) > max_tokens:
        return []
    by_interpolation = True
    while long - short > 1 and len(best) < max_tokens:
        share = (max_tokens - len(best)) / (long_tokens - len(best)) if by_interpolation else 0.5
        guess = min(max(short + round(share * (long - short)), short + 1), long - 1)
        ids = ids_of(text[:guess])
        if len(ids) <= max_tokens:
            short, best = guess, ids
        else:
            long, long_tokens = guess, len(ids)
        by_interpolation = not by_interpolation
    return best
