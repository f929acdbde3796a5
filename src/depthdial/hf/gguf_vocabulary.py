"""A tokenizer of transformers as a GGUF file keeps it: tokens, merges or scores, special tokens, chat template.

llama.cpp splits text before byte-pair merging by the name of a pre-tokenizer. The name is found by comparing how the
tokenizer and each one of `gguf_splits` split the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.ends import turn_end
from depthdial.hf.gguf_splits import SPLITS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_ELSEWHERE = "export with --to hf and convert that folder with llama.cpp's convert_hf_to_gguf.py"
# Where one pre-tokenizer splits otherwise than another: contractions, digits, spaces, lines, marks, scripts, cases.
_PROBE = (
    "Hello world, I'll say they'RE HelloWORLD xY'd  3 spaces   and\ttabs\n\n\nlines \r\n 1234567 12 v1.2.3 ☃😀 100%"
    " «naïve» cafe\u0301 Ünïcödé Привет мир 你好，世界。こんにちは 한국어 हिन्दी ไทย"
    " ---++== a_b_c #!/usr/bin (x){y}[z]; e=mc² ½ \u3000end  "
)


def add_vocabulary(writer: Any, tokenizer: Any, n_tokens: int) -> None:
    """Write a tokenizer into a GGUF file that is being made.

    Args:
        n_tokens: rows of the embedding; tokens that the tokenizer lacks are written as unused.

    Raises:
        InputError: for a tokenizer that llama.cpp cannot be told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{type(tokenizer).__name__} is no fast tokenizer, which GGUF files are made of: {_ELSEWHERE}.")
    parts = json.loads(backend.to_str())
    inner = parts["model"]
    if inner["type"] != "BPE":
        raise InputError(f"A tokenizer of the kind {inner['type']} is not written to GGUF files: {_ELSEWHERE}.")
    words, kinds = _tokens(tokenizer, inner, n_tokens)
    merges = [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in inner["merges"]]
    if inner.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(words)
        writer.add_token_scores(_scores(words, kinds, merges))
        writer.add_token_types(kinds)
        writer.add_add_space_prefix(_prepends_space(parts))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_name(backend, bool(inner.get("ignore_merges"))))
        writer.add_token_list(words)
        writer.add_token_types(kinds)
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    _add_special(writer, tokenizer)


def split_name(backend: Any, whole_words: bool) -> str:
    """llama.cpp's name for how a tokenizer splits text before merging.

    Raises:
        InputError: if it has none.
    """
    ours = _split(backend.pre_tokenizer)
    for name, split in SPLITS.items():
        if split.whole_words == whole_words and _split(split.pre_tokenizer()) == ours:
            return name
    raise InputError(f"llama.cpp has no name for how this tokenizer splits text: {_ELSEWHERE}.")


def _split(pre_tokenizer: Any) -> list[str] | None:
    return None if pre_tokenizer is None else [piece for piece, _ in pre_tokenizer.pre_tokenize_str(_PROBE)]


def _tokens(tokenizer: Any, inner: Mapping[str, Any], n_tokens: int) -> tuple[list[str], list[int]]:
    """Every token's text and gguf-py's number for its kind."""
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    beyond = [word for i, word in words.items() if i >= n_tokens]
    if beyond:
        raise InputError(
            f"The tokenizer has the token {beyond[0]!r} and the model no embedding for it: load a tokenizer of the model."
        )
    kinds = []
    for i in range(n_tokens):
        word = words.get(i)
        if word is None:
            kinds.append(_UNUSED)
        elif word == inner.get("unk_token"):
            kinds.append(_UNKNOWN)
        elif i in added:
            kinds.append(_CONTROL if added[i].special else _USER_DEFINED)
        else:
            kinds.append(_BYTE if inner.get("byte_fallback") and _is_byte(word) else _NORMAL)
    return [words.get(i, f"[PAD{i}]") for i in range(n_tokens)], kinds


def _is_byte(word: str) -> bool:
    return len(word) == 6 and word.startswith("<0x") and word.endswith(">")


def _scores(words: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """llama.cpp merges the pair whose token has the highest score: the earliest merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    last = len(merges)
    return [float(-ranks.get(word, last)) if kind == _NORMAL else 0.0 for word, kind in zip(words, kinds, strict=True)]


def _prepends_space(parts: Mapping[str, Any]) -> bool:
    """Whether text gets a space before its first word."""
    text = json.dumps([parts.get("normalizer"), parts.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _add_special(writer: Any, tokenizer: Any) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ends = {"bos": bos, "eos": eos, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    for name, token in ends.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    end = turn_end(tokenizer)
    if end is not None and end != eos:
        writer.add_eot_token_id(end)
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    writer.add_add_bos_token(bos is not None and ids[:1] == [bos] and plain[:1] != [bos])
    writer.add_add_eos_token(eos is not None and ids[-1:] == [eos] and plain[-1:] != [eos])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
