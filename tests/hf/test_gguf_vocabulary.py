"""Tokenizers in GGUF files: read back by `dd.load`, and by llama.cpp, they read text as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from depthdial.errors import InputError
from depthdial.hf.gguf import read_tokenizer
from depthdial.hf.gguf_splits import SPLITS
from depthdial.hf.gguf_vocabulary import add_vocabulary, split_name
from depthdial.hf.gguf_write import write_gguf
from tests.conftest import make_tokenizer
from tests.hf.checkpoints import BYTES, TEMPLATE, WORDS, tiny_tokenizer
from tests.hf.gguf_models import llama_cpp, tiny_for_gguf

TEXTS = ["", "a  a", "1.\n\n2.  33", " 4 a<|im_start|>a", "año ☃", "I'll DO it, they'RE 12345"]


def write(path: Path, tokenizer: Any, n_tokens: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, tokenizer, n_tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "pre", ["smollm", "gpt-2", "llama3", "qwen2", "gpt-4o", "tekken", "falcon", "default", "deepseek-v3"]
)
def test_splits_are_known_by_how_they_split(tmp_path: Path, pre: str) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(BYTES)}, []))
    backend.pre_tokenizer = SPLITS[pre].pre_tokenizer()
    found = split_name(backend, SPLITS[pre].whole_words)
    assert SPLITS[found].patterns == SPLITS[pre].patterns and SPLITS[found].whole_words == SPLITS[pre].whole_words


def test_a_tokenizer_is_read_back(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pad_token="<|endoftext|>")
    again = read_tokenizer(write(tmp_path / "t.gguf", tokenizer, len(WORDS)))
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == TEMPLATE
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 0)


def test_tokens_that_the_tokenizer_lacks_are_unused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.gguf", tiny_tokenizer(), len(WORDS) + 3)
    fields = gguf.GGUFReader(file).fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == len(WORDS) + 3
    assert fields["tokenizer.ggml.token_type"].contents()[-3:] == [gguf.TokenType.UNUSED] * 3


@pytest.mark.parametrize("adds", [True, False])
def test_whether_a_prompt_begins_with_bos(tmp_path: Path, adds: bool) -> None:
    tokenizer = tiny_tokenizer()
    if adds:
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    again = read_tokenizer(write(tmp_path / "t.gguf", tokenizer, len(WORDS)))
    assert again("a")["input_ids"] == tokenizer("a")["input_ids"]
    assert (again("a")["input_ids"][0] == 1) is adds


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's: spaces are a letter, and unknown letters bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_pieces_have_scores_by_their_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    fields = gguf.GGUFReader(write(tmp_path / "t.gguf", tokenizer, len(tokenizer))).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    words, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    by_word = dict(zip(words, scores, strict=True))
    assert by_word["▁a"] > by_word["ab"] > by_word["▁ab"] > by_word["b"]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[0] == gguf.TokenType.UNKNOWN and set(kinds[3:259]) == {gguf.TokenType.BYTE}
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True


def test_what_llama_cpp_cannot_be_told_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    with pytest.raises(InputError, match=r"A tokenizer of the kind WordLevel is not written"):
        add_vocabulary(writer, make_tokenizer(), 30)
    with pytest.raises(InputError, match=r"has the token .* and the model no embedding"):
        add_vocabulary(writer, tokenizer, 5)
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("x+"), "isolated")
    with pytest.raises(InputError, match=r"llama.cpp has no name for how this tokenizer splits text"):
        add_vocabulary(writer, tokenizer, len(WORDS))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_tokenizer, sentencepiece_like])
def test_llama_cpp_reads_text_alike(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    model = tiny_for_gguf("llama", vocab_size=len(tokenizer))
    write_gguf(model, tokenizer, tmp_path / "m.gguf", file_type="f32")
    engine = llama_cpp().Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS[1:] if make is tiny_tokenizer else ["ab a", "  b", "ü ab", "a b ab"]:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert engine.tokenize(text.encode(), add_bos=False, special=True) == ours, text
    engine.close()
