"""The tokenizer that a GGUF file describes: its splitting, special tokens and chat template survive."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from depthdial.errors import InputError, TokenizerWarning
from depthdial.hf.gguf import check_gguf, read_tokenizer

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*CONTROL, "<tool>", *BYTES, "ĠĠ", "ĊĊ", "Ġa", "12"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "Ġ a", "1 2"]
TEMPLATE = "{{ messages[0]['content'] }}<|im_end|>"


def write_tokenizer(path: Path, pre: str | None, **flags: bool) -> Path:
    """A GGUF file without tensors: what describes the tokenizer, and what transformers asks of any file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED] + [gguf.TokenType.NORMAL] * (len(WORDS) - 4)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory):
    return read_tokenizer(write_tokenizer(tmp_path_factory.mktemp("gguf") / "smollm.gguf", "smollm"))


def test_smollm_sets_digits_apart(smollm, tmp_path: Path) -> None:
    plain = read_tokenizer(write_tokenizer(tmp_path / "plain.gguf", "gpt-2"))
    text = "a\n\n1  2 a12"
    assert smollm.tokenize(text) == ["a", "ĊĊ", "1", "ĠĠ", "2", "Ġa", "1", "2"]
    assert plain.tokenize(text) == ["a", "Ċ", "Ċ", "1", "Ġ", "Ġ", "2", "Ġa", "12"]


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("refact", ["a", "ĊĊ", "1", "ĠĠ", "2", "Ġa", "1", "2"]),
        ("deepseek-v3", ["a", "ĊĊ", "1", "ĠĠ", "2", "Ġa", "12"]),
        ("qwen2", ["a", "ĊĊ", "1", "Ġ", "Ġ", "2", "Ġa", "1", "2"]),
        ("llama-bpe", ["a", "ĊĊ", "1", "Ġ", "Ġ", "2", "Ġa", "12"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str, tokens: list[str]) -> None:
    assert read_tokenizer(write_tokenizer(tmp_path / "tiny.gguf", pre)).tokenize("a\n\n1  2 a12") == tokens


@pytest.mark.parametrize(("pre", "words"), [("unheard-of", "'unheard-of', which is unknown"), (None, "names no pre-token")])
def test_an_unknown_splitting_is_said(tmp_path: Path, pre: str | None, words: str) -> None:
    with pytest.warns(TokenizerWarning, match=words):
        tokenizer = read_tokenizer(write_tokenizer(tmp_path / "tiny.gguf", pre))
    assert tokenizer.tokenize("a\n\n1.") == ["a", "Ċ", "Ċ", "1", "."]


@pytest.mark.parametrize(
    ("pre", "flags", "ends"),
    [
        ("smollm", {}, ([], [])),
        ("smollm", {"add_bos_token": True}, ([1], [])),
        ("llama-bpe", {}, ([1], [])),  # llama.cpp adds it there unless the file says otherwise
        ("llama-bpe", {"add_bos_token": False, "add_eos_token": True}, ([], [2])),
    ],
)
def test_the_ends_of_a_prompt(tmp_path: Path, pre: str, flags: dict[str, bool], ends: tuple[list[int], list[int]]) -> None:
    tokenizer = read_tokenizer(write_tokenizer(tmp_path / "tiny.gguf", pre, **flags))
    assert tokenizer("a")["input_ids"] == [*ends[0], WORDS.index("a"), *ends[1]]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_special_tokens_are_those_that_the_file_names(tmp_path: Path, pre: str) -> None:
    tokenizer = read_tokenizer(write_tokenizer(tmp_path / "tiny.gguf", pre))
    found = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert found == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (2, 2, len(WORDS))
    assert tokenizer("a<|im_start|>")["input_ids"] == [WORDS.index("a"), 1]
    assert tokenizer.chat_template == TEMPLATE


def test_only_control_tokens_are_skipped(smollm) -> None:
    ids = smollm("<|im_start|><tool> a<|im_end|>")["input_ids"]
    assert ids == [1, 3, WORDS.index("Ġa"), 2]
    assert smollm.decode(ids, skip_special_tokens=True) == "<tool> a"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
@example(text=" 1 , 2 .  don't <|im_end|> é☃")
def test_what_is_encoded_is_decoded(smollm, text: str) -> None:
    assert smollm.decode(smollm(text)["input_ids"]) == text


def test_a_saved_tokenizer_is_the_same(smollm, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    smollm.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "a\n\n1  2", "<|im_start|>a 12<tool>"):
        assert again(text)["input_ids"] == smollm(text)["input_ids"]
    assert (again.special_tokens_map, again.chat_template) == (smollm.special_tokens_map, TEMPLATE)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.gguf", b""), ("zip.gguf", b"PK\3\4")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a GGUF file"):
            check_gguf(tmp_path / name)


def test_a_gguf_file_beside_an_adapter_is_refused(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path / "tiny.gguf", "smollm")
    check_gguf(file)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="folder of a PEFT adapter"):
        check_gguf(file)
