"""A GGUF file's tokenizer, as the file describes it.

transformers reads GGUF tokenizers with some losses, which differ between its versions: the splitting that the file
names is replaced by GPT-2's, and 5.10 confuses the special tokens. What is lost is put back here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType: tokens that text is searched for before it is split


def check_gguf(file: Path) -> None:
    """Refuse what cannot be loaded as a GGUF file, before anything is read of it.

    Raises:
        InputError: it does not start as a GGUF file, or transformers would mix an adapter beside it in.
    """
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file (it does not start with GGUF): download it again")
    if (file.parent / "adapter_config.json").exists():
        raise InputError(f"{file} lies in the folder of a PEFT adapter, which would be applied: move it elsewhere")


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template.

    SmolLM's is built here from the file's own tables. The file names its splitting (`tokenizer.ggml.pre`): "smollm" is
    GPT-2's after every digit has been set apart (so in llama.cpp, and in the published tokenizer). transformers keeps
    GPT-2's only, and then a blank line or several spaces before a digit come out as tokens that the model was not
    trained on: on a numbered list SmolLM2-135M-Instruct loses 0.2 nats a token. Other tokenizers are read by
    transformers, and their special tokens set to those that the file names.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    read = {key.removeprefix("tokenizer."): field.contents for key, field in fields.items() if "tokenizer." in key}
    special = {role: f"ggml.{name}_token_id" for role, name in _SPECIAL.items() if f"ggml.{name}_token_id" in read}
    if read["ggml.model"]() == "gpt2" and "ggml.pre" in read and read["ggml.pre"]() == "smollm":
        words = read["ggml.tokens"]()
        tokenizer = _build_smollm(
            words,
            merges=read["ggml.merges"](),
            kinds=read["ggml.token_type"](),
            names={r: words[read[k]()] for r, k in special.items()},
        )
        if "chat_template" in read:
            tokenizer.chat_template = read["chat_template"]()
        return tokenizer
    from transformers import AutoTokenizer

    # An absolute path: transformers looks a bare file name up in the current folder first.
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=str(file.absolute()))
    for role, key in special.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(int(read[key]())))
    return tokenizer


def _build_smollm(words: list[str], *, merges: list[str], kinds: list[int], names: dict[str, str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    for word, kind in zip(words, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            inner.add_tokens([AddedToken(word, normalized=False, special=kind == _CONTROL)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **names)
