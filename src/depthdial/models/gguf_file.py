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
    GPT-2's after every digit has been set apart (so in llama.cpp). transformers keeps
    GPT-2's only, and then a blank line or several spaces before a digit come out as tokens that the model was not
    trained on: a numbered list of five lines costs SmolLM2-135M-Instruct 97 nats then, and 80 as here. Other
    tokenizers are read by transformers, and their special tokens set to those that the file names.
    """
    from gguf import GGUFReader

    facts = {key: field.contents for key, field in GGUFReader(file).fields.items() if key.startswith("tokenizer.")}
    special = {
        role: int(facts[key]()) for role, name in _SPECIAL.items() if (key := f"tokenizer.ggml.{name}_token_id") in facts
    }
    if [facts[key]() for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre") if key in facts] == ["gpt2", "smollm"]:
        return _build_smollm({key: read() for key, read in facts.items()}, special)
    from transformers import AutoTokenizer

    # An absolute path: transformers looks a bare file name up in the current folder first.
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=str(file.absolute()))
    for role, i in special.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(i))
    return tokenizer


def _build_smollm(facts: dict[str, Any], special: dict[str, int]) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in facts["tokenizer.ggml.merges"])]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    for word, kind in zip(words, facts["tokenizer.ggml.token_type"], strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            inner.add_tokens([AddedToken(word, normalized=False, special=kind == _CONTROL)])
    names = {role: words[i] for role, i in special.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = facts.get("tokenizer.chat_template")
    return tokenizer
