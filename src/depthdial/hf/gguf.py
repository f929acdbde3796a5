"""A GGUF file's tokenizer, as the file describes it, and what transformers does not read of its configuration.

transformers reads GGUF tokenizers with some losses, which differ between its versions: the splitting that the file
names is often replaced by GPT-2's, and 5.10 confuses the special tokens. So byte-level BPE tokenizers are built here, and
what transformers loses of the others is put back.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.errors import InputError, TokenizerWarning
from depthdial.hf.gguf_layers import PATTERN_KEY, sliding_layers
from depthdial.hf.gguf_rope import TENSOR, llama3_parameters
from depthdial.hf.gguf_splits import DEFAULT, SPLITS, Split
from depthdial.hf.tokenizers import set_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # gguf.TokenType: tokens that text is searched for before it is split


def check_gguf(file: Path) -> None:
    """Refuse what cannot be loaded as a GGUF file, before anything is read of it."""
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file (it does not start with GGUF): download it again.")
    part = re.fullmatch(r".*-(\d{5})-of-(\d{5})", file.stem)
    if part and int(part[2]) > 1:
        raise InputError(
            f"{file} is part {int(part[1])} of a GGUF file in {int(part[2])} parts, which transformers does not read: join"
            " them with `llama-gguf-split --merge`."
        )
    if (file.parent / "adapter_config.json").exists():
        raise InputError(f"{file} lies in the folder of a PEFT adapter, which would be applied: move it elsewhere.")


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template.

    A byte-level BPE tokenizer (`tokenizer.ggml.model` is "gpt2") is built from the file's own tables and the pre-tokenizer
    that the file names (`tokenizer.ggml.pre`), as llama.cpp does. It matters: with another one, a blank line or several
    spaces before a digit come out as tokens that the model was not trained on, and a numbered list of five lines costs
    SmolLM2-135M-Instruct 97 nats in place of 80. Other tokenizers are read by transformers, and their special tokens and
    the beginning-of-sequence token before a prompt set to what the file says.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def read(name: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    special = {role: int(i) for role, name in _SPECIAL.items() if (i := read(f"ggml.{name}_token_id")) is not None}
    kind = read("ggml.model")
    if kind == "gpt2":
        return _build_byte_level(file, read, special)
    from transformers import AutoTokenizer

    # An absolute path: transformers looks a bare file name up in the current folder first.
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=str(file.absolute()))
    for role, i in special.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(i))
    if kind == "llama":  # llama.cpp begins a sentencepiece prompt with BOS unless the file says otherwise
        set_ends(tokenizer, add_bos=bool(read("ggml.add_bos_token", True)), add_eos=bool(read("ggml.add_eos_token", False)))
    return tokenizer


def _split_of(file: Path, pre: str | None) -> Split:
    if pre is not None and pre in SPLITS:
        return SPLITS[pre]
    reason = "names no pre-tokenizer" if pre is None else f"names the pre-tokenizer {pre!r}, which is unknown"
    warnings.warn(
        f"{file.name} {reason}: text is split by llama.cpp's default, which the model may not have been trained on",
        TokenizerWarning,
        stacklevel=2,
    )
    return DEFAULT


def _build_byte_level(file: Path, read: Callable[..., Any], special: dict[str, int]) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    split = _split_of(file, read("ggml.pre"))
    for name in ("ggml.tokens", "ggml.merges"):
        if read(name) is None:
            raise KeyError(f"tokenizer.{name}")
    words: list[str] = read("ggml.tokens")
    merges = [(line[: (at := line.index(" ", 1))], line[at + 1 :]) for line in read("ggml.merges")]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.whole_words))
    inner.pre_tokenizer = split.pre_tokenizer()
    inner.decoder = decoders.ByteLevel()
    for word, kind in zip(words, read("ggml.token_type", ()), strict=False):
        if word and kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            inner.add_tokens([AddedToken(word, normalized=False, special=kind != _USER_DEFINED)])
    names = {role: words[i] for role, i in special.items() if 0 <= i < len(words)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = read("chat_template")
    add_bos, add_eos = read("ggml.add_bos_token", split.add_bos), read("ggml.add_eos_token", False)
    set_ends(tokenizer, add_bos=bool(add_bos), add_eos=bool(add_eos))
    return tokenizer


def correct_config(config: Any, file: Path) -> None:
    """Put what transformers does not read of a file into its configuration, as llama.cpp reads it.

    Of Llama 3 its scaled rotary frequencies; of Gemma 3 the period of its sliding windows, their rotary frequencies, and the
    scale of attention, which llama.cpp tells from the number of layers (62: Gemma 3 27B).
    """
    from gguf import GGUFReader

    if config.model_type == "llama":
        factors = next((one.data for one in GGUFReader(file).tensors if one.name == TENSOR), None)
        scaled = None if factors is None else llama3_parameters(factors.tolist(), config.rope_parameters["rope_theta"])
        if scaled is not None:
            config.rope_parameters = scaled
    if config.model_type == "gemma3_text":
        _correct_gemma3(config, GGUFReader(file).fields)


def _correct_gemma3(config: Any, fields: Any) -> None:
    pattern, local = (fields.get(f"gemma3.{name}") for name in (PATTERN_KEY, "rope.freq_base_swa"))
    kinds = sliding_layers(None if pattern is None else pattern.contents(), config.num_hidden_layers)
    config.layer_types = ["sliding_attention" if one else "full_attention" for one in kinds]
    if local is not None:
        config.rope_parameters["sliding_attention"]["rope_theta"] = local.contents()
    is_27b = config.num_hidden_layers == 62
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
