"""How a GGUF file's text is split, by the names that llama.cpp knows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.hf.gguf_splits import DEFAULT, SPLITS

# Every name that llama.cpp knows for byte-level BPE, so that none is lost when the table is changed
NAMES = """
    default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm
    deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es
    jina-v2-de a.x-4.0 mellum modern-bert jais-2 jina-v1-en jina-v2-code roberta-bpe refact command-r qwen2
    deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 chatglm-bpe viking jais tekken
    smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2
    talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2
    llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2
    solar-open mellum2
"""


def pieces(name: str, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in SPLITS[name].pre_tokenizer().pre_tokenize_str(text)]


def test_the_names() -> None:
    assert set(NAMES.split()) == set(SPLITS)
    assert SPLITS["default"] is DEFAULT


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=15, deadline=None)
@given(text=st.text(st.sampled_from("a B\n\r\t1٣½'st.,$`#日本かคé\u0301हि्🙂ΐΩKǅ"), max_size=12))
def test_no_text_is_lost(name: str, text: str) -> None:
    assert "".join(pieces(name, text)) == text


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        ("smollm starcoder refact command-r codeshell exaone minerva-7b", "a\n\n1  2 a12", "a|\n\n|1|  |2| a|1|2"),
        ("gpt-2 mpt olmo jais trillion exaone4", "a\n\n1  2 a12", "a|\n|\n|1| | 2| a|12"),
        ("llama-bpe llama3 falcon3 dbrx glm4 smaug-bpe", "a\n\n1  2 a1234", "a|\n\n|1| | |2| a|123|4"),
        ("qwen2 stablelm2 hunyuan megrez grok-2", "a\n\n1  2 a12", "a|\n\n|1| | |2| a|1|2"),
        ("llama-bpe qwen2 stablelm2", "I'LL don't", "I|'LL| don|'t"),
        ("gpt-2 smollm", "I'LL don't", "I|'|LL| don|'t"),
        ("gpt-4o llama4", "I'LL camelCase don't", "I'LL| camel|Case| don't"),
        ("tekken", "camelCase don't 123", "camel|Case| don|'t| |1|2|3"),
        ("qwen2", "हिन्दी", "ह|िन|्द|ी"),
        ("qwen35 tekken gpt-4o", "हिन्दी", "हिन्दी"),
        ("ufakzeka", "Ankara'lı", "Ankara|'lı"),
        ("qwen2", "Ankara'lı", "Ankara|'lı"),
        ("ufakzeka", "it's", "it|'s"),
        ("ufakzeka", "I'mi", "I|'mi"),
        ("qwen2", "I'mi", "I|'m|i"),
        ("deepseek-llm", "hi\n\n é12 日本", "hi|\n|\n| é|12| |日本"),
        ("deepseek-llm", "աԱ \u0390Ωǅ", "ա|Ա| \u0390Ωǅ"),
        ("deepseek-coder", "x1 .\n12", "x|1| .|\n|1|2"),
        ("deepseek-v3 hunyuan-dense", "日本1234.abc\n", "日本|123|4|.abc|\n"),
        ("falcon default", "a1234`b.", {"falcon": "a|123|4|`|b|.", "default": "a|123|4|`|b|."}),
        ("falcon", "a  `b", "a|  |`|b"),
        ("default", "a  `b", "a| | `|b"),
        ("bloom gpt3-finnish poro-chat", "a, b12  c", "a|,| b12| | c"),
        ("viking", "a b12", "a| b|1|2"),
        ("superbpe afmoe tiny_aya", "1234567", "1|234|567"),
        ("seed-coder", "a.\n\nb", "a|.|\n\n|b"),
        ("qwen2", "a.\n\nb", "a|.\n\n|b"),
        ("bailingmoe", "a \n\nb", "a| \n\n|b"),
        ("chameleon", "a    b1.", "a|    |b|1|."),
        ("kimi-k2", "日本go", "日本|go"),
        ("laguna", "a \nb", "a| |\n|b"),
        ("youtu", "a한국。12", "a|한국|。|1|2"),
        ("exaone-moe", "go to it", "go to it"),
        ("minicpm5", "a1234", "a|123|4"),
    ],
)
def test_the_pieces(names: str, text: str, expected: str | dict[str, str]) -> None:
    for name in names.split():
        wanted = expected if isinstance(expected, str) else expected[name]
        assert "|".join(pieces(name, text)) == wanted, name


def test_smollm_is_digits_apart_and_then_gpt2() -> None:
    from tokenizers import pre_tokenizers

    right = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    text = "1.\n\n2.  33 é٣½ don't\t4\r\n five  "
    assert SPLITS["smollm"].pre_tokenizer().pre_tokenize_str(text) == right.pre_tokenize_str(text)
