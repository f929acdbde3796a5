"""Text splits before byte-pair merging, by their name in a GGUF file (`tokenizer.ggml.pre`).

A GGUF file of a byte-level BPE tokenizer carries its tokens and merges but only the name of its pre-tokenizer. The names
are llama.cpp's; the patterns are those of the models' own tokenizer.json files. A file whose name stands for one pattern
after another splits every piece again by the next pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers


@dataclass(frozen=True)
class Split:
    """One pre-tokenizer of llama.cpp.

    Args:
        patterns: regular expressions (Oniguruma's), each of which splits the pieces that the one before it left.
        whole_words: a piece that is a token by itself is not merged from its bytes.
        add_bos: a prompt begins with the beginning-of-sequence token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The same as a pre-tokenizer of `tokenizers`, with the bytes spelled in GPT-2's alphabet."""
        from tokenizers import Regex, pre_tokenizers

        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, spelling])


_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_DIGIT, _THREE_DIGITS, _DIGITS = r"\p{N}", r"\p{N}{1,3}", r"\p{N}+"


def _gpt4(numbers: str, *, letters: str = r"\p{L}", contractions: str = f"{_CONTRACTIONS}|", spaces: str = _SPACES) -> str:
    """The pattern that GPT-4 began: contractions, words with one leading mark, numbers, punctuation, lines, spaces."""
    marks = r"\p{M}" if r"\p{M}" in letters else ""
    return (
        rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}"
        rf"| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|{_LINES}|{spaces}"
    )


def _cased(numbers: str, *, suffix: str = "", without: str = "", slash: str = "/") -> str:
    """GPT-4o's: words are also split where a capital follows a small letter."""
    upper, lower = (rf"[{cases}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]" for cases in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
    mark = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{mark}{upper}*{lower}+{suffix}|{mark}{upper}+{lower}*{suffix}|{numbers}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*|{_LINES}|{_SPACES}"
    )


def _deepseek(lines: str) -> str:
    return (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+{lines}|{_SPACES}"
    )


_LLAMA3, _QWEN2 = _gpt4(_THREE_DIGITS), _gpt4(_DIGIT)
_GPT4O = _cased(_THREE_DIGITS, suffix=f"{_CONTRACTIONS}?")
_KANA = "[一-龥\u3040-\u30ff]+"
_EAST_ASIAN = "[一-龥ࠀ-一가-\ud7ff]+"
_WORDS_OF_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_JAIS_SPACES = "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
# The letters with case as DeepSeek LLM's tokenizer lists them (the small Armenian and Georgian ones are not among them).
# Escapes, because many of these characters are equal to others under Unicode normalisation.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113"
    "\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_ONE_DIGIT_THEN_GPT2 = Split((_DIGIT, _GPT2))
_BY_NAMES = {
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _ONE_DIGIT_THEN_GPT2,
    "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum modern-bert granite-docling jina-es jina-de"
    " jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe": Split((_GPT2,)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Split(
        (_LLAMA3,), whole_words=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": Split((_LLAMA3,)),
    "qwen2 stablelm2 hunyuan megrez deepseek-r1-qwen kormo f2llmv2 solar-open grok-2": Split((_QWEN2,)),
    "qwen35": Split((_gpt4(_DIGIT, letters=r"[\p{L}\p{M}]"),)),
    "ufakzeka": Split((_gpt4(_DIGIT, contractions=""),)),
    "laguna": Split((r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": Split((_THREE_DIGITS, _gpt4(_DIGITS)), whole_words=True),
    "jais-2": Split((_gpt4(_THREE_DIGITS, spaces=_JAIS_SPACES),)),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Split((_GPT4O,)),
    "granite-embed-multi-97m": Split((_GPT4O,), whole_words=True),
    "tiny_aya cohere2moe": Split((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "tekken": Split((_cased(_DIGIT),), whole_words=True, add_bos=True),
    "kimi-k2": Split(
        (r"[\p{Han}]+|" + _cased(_THREE_DIGITS, suffix=f"{_CONTRACTIONS}?", without=r"&&[^\p{Han}]", slash=""),)
    ),
    "youtu": Split(
        (rf"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_KANA}", _cased(_DIGIT, suffix=f"{_CONTRACTIONS}?")),
        whole_words=True,
    ),
    "deepseek-llm": Split(
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _EAST_ASIAN, _DIGITS)
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Split((_THREE_DIGITS, _KANA, _deepseek(rf"[\r\n]*|{_LINES}"))),
    "spark2_5": Split((_THREE_DIGITS, _KANA, _deepseek(r"|[\r\n]"), _DIGIT)),
    "afmoe": Split(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
            "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
            _deepseek(rf"[\r\n]*|{_LINES}"),
        )
    ),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "bloom gpt3-finnish poro-chat": Split((_WORDS_OF_BLOOM,)),
    "viking": Split((_WORDS_OF_BLOOM, _DIGIT)),
    "chameleon": Split(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "superbpe": Split((_DIGITS, r"(?=(\d{3})+(?!\d))")),
    "bailingmoe bailingmoe2 llada-moe": Split(
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            rf"|\s*[\r\n]|{_SPACES}",
        )
    ),
    "seed-coder": Split(
        (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_SPACES}",)
    ),
    "exaone-moe": Split(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",
        )
    ),
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, _DIGITS, "[0-9][0-9][0-9]")),
}

SPLITS = MappingProxyType({name: split for names, split in _BY_NAMES.items() for name in names.split()})
DEFAULT = SPLITS["default"]
