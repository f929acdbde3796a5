"""Templates: how an example becomes the tokens of a prompt, and how a long document is cut to a token budget.

| template | the prompt                                                                                                |
| -------- | --------------------------------------------------------------------------------------------------------- |
| `chat`   | the tokenizer's own chat template around one user message (instruction and input; for a document to        |
|          | summarise, a line that asks for it)                                                                        |
| `paper`  | the forms of the paper (arXiv 2410.20022, section 4): Alpaca's instruction/input/response,                 |
|          | "### Article:" / "### Summary:"; a bare prompt stays as it is                                              |
| `plain`  | the text as it is                                                                                          |
| `auto`   | `chat` where the tokenizer has a chat template, else `paper`                                               |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from depthdial.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "paper", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

Form = Literal["instruction", "article", "dialogue", "prompt"]
"""What an example is: an instruction with or without an input, a document to summarise, or a prompt to leave alone."""

# Stanford Alpaca's two forms, word for word: models were fine-tuned on exactly this text.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{document}\n\n### Response:"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_SUMMARY = {
    "article": "### Article:\n{document}\n### Summary:\n",
    "dialogue": "### Dialogue:\n{document}\n### Summary:\n",
}
_SUMMARY_REQUEST = {
    "article": "Summarize the following article in three or four sentences.",
    "dialogue": "Summarize the following dialogue in one or two sentences.",
}


def check_template(template: str) -> Template:
    """`template` itself if it is known; InputError otherwise."""
    for known in TEMPLATES:
        if template == known:
            return known
    raise InputError(f"Unknown template {template!r}: use {', '.join(TEMPLATES)}.")


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
        raise InputError("This tokenizer has no chat template: use template='paper' or 'plain'.")
    return known


@dataclass(frozen=True)
class Prompter:
    """Makes prompts of one form with one template.

    Attributes:
        template: a resolved one (see `resolve_template`).
        form: what the examples are.
        tokenizer: of the model that will read the prompts.
    """

    template: Template
    form: Form
    tokenizer: PreTrainedTokenizerBase

    def text(self, instruction: str, document: str = "") -> str:
        """The prompt as text; with `chat`, the user message that the chat template then wraps."""
        if self.template == "paper" and self.form != "prompt":
            # str.replace and not str.format: the texts may hold braces, and one may hold the other's placeholder.
            before, after = self._paper_form(document).split(
                "{document}" if document or not instruction else "{instruction}"
            )
            return before.replace("{instruction}", instruction) + (document or instruction) + after
        request = _SUMMARY_REQUEST.get(self.form, "") if self.template == "chat" else ""
        return "\n\n".join(part for part in (request, instruction, document) if part)

    def ids(self, instruction: str, document: str = "") -> list[int]:
        """Token ids of the prompt, ready for the response to follow.

        A chat prompt is exactly what `apply_chat_template(..., add_generation_prompt=True)` gives. The others carry the
        special tokens that the tokenizer puts first; one that it puts last (an end of sequence) would end the answer
        before it starts and is left out.
        """
        text = self.text(instruction, document)
        if self.template == "chat":
            return self._chat_ids(text)
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        eos_id, eos = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        if len(ids) > 1 and ids[-1] == eos_id and not text.endswith(str(eos)):
            ids.pop()
        return ids
