"""Single tokens as text and as bytes, and log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from depthdial.engine.logprobs import TokenLogprob

_LEAST = -9999.0  # what OpenAI's and vLLM's servers write for minus infinity
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space in the vocabularies of SentencePiece
_HEX = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """Texts and bytes of a tokenizer's tokens, each found once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def text(self, token: int) -> str:
        """A token by itself; part of a character is written as its bytes, `bytes:\\xe2`, as OpenAI does."""
        return self._found(token)[0]

    def bytes(self, token: int) -> list[int]:
        return self._found(token)[1]

    def chat(self, found: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """`logprobs.content` of a chat."""
        return [
            {
                **self._entry(one.token, one.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in one.top],
            }
            for one in found
        ]

    def completion(self, tokens: Sequence[int], found: Sequence[TokenLogprob | None], offset: int = 0) -> dict[str, Any]:
        """`logprobs` of a completion.

        Args:
            found: one for each token; None for a token that nothing stands before.
            offset: characters before the first token.
        """
        texts = [self.text(token) for token in tokens]
        offsets = [offset]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [None if one is None else _finite(one.logprob) for one in found],
            "top_logprobs": [None if one is None else self._tops(one) for one in found],
            "text_offset": offsets[:-1],
        }

    def _tops(self, one: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the token itself; of tokens that read alike, the likeliest."""
        tops: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            tops.setdefault(self.text(token), _finite(logprob))
        return tops

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": _finite(logprob), "bytes": self.bytes(token)}

    def _found(self, token: int) -> tuple[str, list[int]]:
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> tuple[str, list[int]]:
        text = str(self._tokenizer.decode([token], skip_special_tokens=False))
        written = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(written, str):
            return text, list(text.encode())
        if _REPLACED in text and (raw := _raw(written)) is not None:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw
        if written.startswith(_SPACE) and not text.startswith(" "):  # decoding begins a text with it, without its space
            text = f" {text}"
        return text, list(text.encode())


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _raw(written: str) -> list[int] | None:
    """The bytes of a token that is no whole text, from how its vocabulary writes it; None where that is not known."""
    if (found := _HEX.fullmatch(written)) is not None:
        return [int(found[1], 16)]
    known = _byte_letters()
    return [known[letter] for letter in written] if all(letter in known for letter in written) else None


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}
