"""End tokens of an answer: those of the model's settings, its tokenizer and its chat template."""

from __future__ import annotations

from typing import Any

from depthdial.hf.architectures import unwrap

_MARK = "depthdialanswer"


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer, by the model's generation settings, the tokenizer and its chat template."""
    end = turn_end(tokenizer)
    return tuple(sorted({*configured_ends(model, tokenizer), *(() if end is None else (end,))}))


def configured_ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The same without the chat template."""
    configured = getattr(unwrap(model).generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None}))


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind an answer, such as <|im_end|>, <|eot_id|> or <end_of_turn>.

    It need be neither the tokenizer's end token nor one of the model's. None without a chat template, or for one that ends
    an answer with plain text or nothing.
    """
    tail = _after_answer(tokenizer)
    if not tail:
        return None
    added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    others = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in added - others:
            return int(token)
        if tokenizer.decode([token]).strip():
            return None
    return None


def _after_answer(tokenizer: Any) -> str:
    """What the chat template puts behind an assistant's words."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    # Some templates take a message's content as a list of parts.
    for content in (_MARK, [{"type": "text", "text": _MARK}]):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template may raise whatever it likes, and this one is not for such a conversation
            continue
        if text.count(_MARK) == 2:
            return text.rpartition(_MARK)[2]
    return ""
