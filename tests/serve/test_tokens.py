from __future__ import annotations

import json

from depthdial.engine.logprobs import TokenLogprob
from depthdial.serve.tokens import TokenTexts
from tests.conftest import make_tokenizer
from tests.tiny import byte_tokenizer


def test_bytes_of_all_tokens_make_up_the_text():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    tokens = tokenizer.encode("a€")
    assert bytes(byte for token in tokens for byte in texts.bytes(token)).decode() == "a€"
    assert [texts.text(token) for token in tokens] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]


def test_pieces_of_sentencepiece_keep_their_space():
    class Pieces:
        def decode(self, tokens, **_):
            return {1: "cat", 2: "\N{REPLACEMENT CHARACTER}"}[tokens[0]]

        def convert_ids_to_tokens(self, token):
            return {1: "▁cat", 2: "<0xE2>"}[token]

    texts = TokenTexts(Pieces())
    assert (texts.text(1), texts.text(2), texts.bytes(2)) == (" cat", "bytes:\\xe2", [0xE2])


def test_the_two_shapes_are_json_without_infinities():
    texts = TokenTexts(make_tokenizer())
    found = [TokenLogprob(4, -0.5, ((4, -0.5), (6, -2.0))), TokenLogprob(6, float("-inf"), ((4, 0.0),))]
    chat = texts.chat(found)
    assert chat[0] == {
        "token": "the",
        "logprob": -0.5,
        "bytes": list(b"the"),
        "top_logprobs": [
            {"token": "the", "logprob": -0.5, "bytes": list(b"the")},
            {"token": "cat", "logprob": -2.0, "bytes": list(b"cat")},
        ],
    }
    assert chat[1]["logprob"] == -9999.0
    told = texts.completion([5, 4, 6], [None, *found], offset=2)
    assert told["tokens"] == ["a", "the", "cat"] and told["text_offset"] == [2, 3, 6]
    assert told["token_logprobs"] == [None, -0.5, -9999.0]
    assert told["top_logprobs"] == [None, {"the": -0.5, "cat": -2.0}, {"the": 0.0, "cat": -9999.0}]
    json.dumps([chat, told], allow_nan=False)
