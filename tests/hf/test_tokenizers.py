"""A folder's tokenizer encodes and decodes as its tokenizer.json says, whatever class its other files name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from depthdial.hf.tokenizers import read_folder, set_ends
from tests.hf.checkpoints import cut_network

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>"]
MERGES = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "a"), ("1", "2"), ("Ġ", "1"), ("a", "b"), ("'", "t"), ("Ã", "©")]
WORDS = [*CONTROL, *BYTES, *("".join(pair) for pair in MERGES)]
METASPACE = [*CONTROL, *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "1", "2", "▁a", "▁▁", "12", "é"]
DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
TEXTS = [
    "a\n\n1  2 a12",
    "  12 ab\n\n\n a\tdon't  ",
    "def f(a):\n    return a[12] + 1\n",
    "año e\u0301 日本語 12 हिन्दी 🙂",
    "a<|im_end|> 12<|im_start|>\n a",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


def byte_level(pre: Any, *, normalizer: Any = None, whole_words: bool = False) -> Tokenizer:
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, MERGES, ignore_merges=whole_words))
    inner.pre_tokenizer, inner.decoder, inner.post_processor = pre, decoders.ByteLevel(), processors.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    return inner


def metaspace() -> Tokenizer:
    """As Llama 2 and Mistral have it: blanks spelled by the normaliser, unknown characters by their bytes."""
    merges = [("▁", "a"), ("▁", "▁"), ("1", "2")]
    inner = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(METASPACE)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


KINDS = {
    "digits apart": lambda: byte_level(pre_tokenizers.Sequence([DIGITS, BYTE_LEVEL])),
    "digits by three": lambda: byte_level(pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), BYTE_LEVEL]), whole_words=True),
    "a blank in front": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "normalised": lambda: byte_level(BYTE_LEVEL, normalizer=normalizers.NFC()),
    "metaspace": metaspace,
    "not split": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
}


def write(folder: Path, inner: Tokenizer, model_type: str = "llama", **config: Any) -> Path:
    for word in CONTROL:
        inner.add_special_tokens([AddedToken(word, normalized=False, special=True)])
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": False}),
        ("gpt2", {}),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("gemma", {"tokenizer_class": "GemmaTokenizerFast"}),
        ("mistral", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("cohere", {}),
        ("gpt_neox", {"tokenizer_class": "NoSuchTokenizer", "add_prefix_space": True}),
    ],
)
def test_text_is_encoded_and_decoded_as_the_file_says(tmp_path: Path, kind: str, model_type: str, config: dict) -> None:
    tokenizer = read_folder(write(tmp_path, KINDS[kind](), model_type, **config))
    right = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == right.encode(text).ids
        assert tokenizer.decode(ids) == right.decode(ids, skip_special_tokens=False)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def misnamed(tmp_path_factory: pytest.TempPathFactory):
    folder = write(tmp_path_factory.mktemp("t"), KINDS["digits apart"](), tokenizer_class="GPT2Tokenizer")
    return read_folder(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
@example(text=" 1 , 2 .  don't <|im_end|> é☃")
def test_any_text_is_encoded_as_the_file_says(misnamed, text: str) -> None:
    tokenizer, right = misnamed
    assert tokenizer(text)["input_ids"] == right.encode(text).ids
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_transformers_alone_would_get_it_wrong(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, KINDS["digits apart"](), tokenizer_class="GPT2Tokenizer")
    assert AutoTokenizer.from_pretrained(str(tmp_path)).tokenize("a\n\n1") != ["a", "ĊĊ", "1"]  # or the check is idle
    assert read_folder(tmp_path).tokenize("a\n\n1") == ["a", "ĊĊ", "1"]


def test_a_class_that_is_right_is_kept(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    write(tmp_path, byte_level(BYTE_LEVEL), "gpt2")
    GPT2Tokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=MERGES).save_pretrained(tmp_path)
    assert type(read_folder(tmp_path)) is GPT2Tokenizer


def test_what_the_config_says_is_kept(tmp_path: Path) -> None:
    config = {"padding_side": "left", "model_max_length": 77, "chat_template": "{{ messages }}", "pad_token": "[PAD]"}
    added = {
        str(len(WORDS)): {"content": "[PAD]", "special": True},
        str(len(WORDS) + 1): {"content": "<tool>", "special": False},
    }
    write(tmp_path, KINDS["digits apart"](), tokenizer_class="GPT2Tokenizer", added_tokens_decoder=added, **config)
    tokenizer = read_folder(tmp_path)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 77)
    assert (tokenizer.chat_template, tokenizer.pad_token_id) == ("{{ messages }}", len(WORDS))
    assert tokenizer("<tool>a")["input_ids"] == [len(WORDS) + 1, WORDS.index("a")]


def test_special_tokens_that_only_the_class_knows(tmp_path: Path) -> None:
    write(tmp_path, KINDS["digits apart"](), "gpt2", tokenizer_class="GPT2Tokenizer")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = read_folder(tmp_path)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]


BOS, EOS = CONTROL.index("<|im_start|>"), CONTROL.index("<|im_end|>")


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    ("in_file", "config", "ends"),
    [
        (True, {}, ([BOS], [])),
        (False, {}, ([], [])),
        (False, {"add_bos_token": True}, ([BOS], [])),
        (True, {"add_bos_token": False}, ([], [])),
        (True, {"add_eos_token": True}, ([BOS], [EOS])),
        (True, {"add_eos_token": False}, ([BOS], [])),
        (False, {"add_bos_token": None, "add_eos_token": True}, ([], [EOS])),
    ],
)
def test_the_ends_of_a_sequence(tmp_path: Path, tokenizer_class: str, in_file: bool, config: dict, ends: tuple) -> None:
    inner = KINDS["digits apart"]()
    if in_file:
        inner.post_processor = processors.TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", BOS)])
    tokenizer = read_folder(write(tmp_path, inner, tokenizer_class=tokenizer_class, **config))
    assert tokenizer("a")["input_ids"] == [*ends[0], WORDS.index("a"), *ends[1]]
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [WORDS.index("a")]


def test_a_template_that_adds_more_than_the_ends_is_kept(tmp_path: Path) -> None:
    inner = KINDS["digits apart"]()  # as GLM's: two tokens before a prompt, and tokenizer_config.json says that none is BOS
    marks = [("<unk>", CONTROL.index("<unk>")), ("<s>", CONTROL.index("<s>"))]
    inner.post_processor = processors.TemplateProcessing("<unk> <s> $A", None, marks)
    write(tmp_path, inner, tokenizer_class="GPT2Tokenizer", add_bos_token=False)
    assert read_folder(tmp_path)("a")["input_ids"] == [marks[0][1], marks[1][1], WORDS.index("a")]


def test_ends_are_set_and_unset(tmp_path: Path) -> None:
    tokenizer = read_folder(write(tmp_path, KINDS["digits apart"]()))
    a = WORDS.index("a")
    for bos, eos in [(True, True), (True, False), (False, True), (False, False)]:
        set_ends(tokenizer, add_bos=bos, add_eos=eos)
        assert tokenizer("a")["input_ids"] == [BOS] * bos + [a] + [EOS] * eos
        assert tokenizer("a", "a")["input_ids"] == ([BOS] * bos + [a] + [EOS] * eos) * 2
        assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == (bos, eos)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = read_folder(write(tmp_path / "a", KINDS["digits apart"](), tokenizer_class="GPT2Tokenizer"))
    tokenizer.save_pretrained(tmp_path / "b")
    again = read_folder(tmp_path / "b")
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_padding_and_truncation_of_the_file_do_not_shorten_prompts(tmp_path: Path) -> None:
    inner = KINDS["digits apart"]()
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    tokenizer = read_folder(write(tmp_path, inner, tokenizer_class="GPT2Tokenizer"))
    assert tokenizer("abab1")["input_ids"] == [WORDS.index("ab")] * 2 + [WORDS.index("1")]
