"""A checkpoint folder's tokenizer: it encodes and decodes as the folder's own tokenizer.json says.

transformers 5 rebuilds some tokenizers from their vocabulary alone, by the class that tokenizer_config.json or the model's
type names, with that class's own normaliser and pre-tokenizer. SmolLM2's folder on the Hub names GPT2Tokenizer, so that
its rule for digits is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
_PARTS = ("normalizer", "pre_tokenizer", "decoder", "model")


def read_folder(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Where the folder has a tokenizer.json, text is encoded and decoded as that file says, whatever class the folder's
    other files name. tokenizer_config.json decides what is not in it (special tokens, chat template, sides), and
    whether the beginning- and end-of-sequence tokens are added, where it says so.

    Args:
        trust_remote_code: a tokenizer class that comes with the folder may be run; it is then left as it is.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / FILE
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        _check_json(folder)
        # The class that is named may lack a file or a package, which tokenizer.json does without.
        if "trust_remote_code" in str(error) or not file.is_file():
            raise
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if not file.is_file() or not type(tokenizer).__module__.startswith("transformers."):
        return tokenizer
    right = Tokenizer.from_file(str(file))
    right.no_padding()
    right.no_truncation()
    if not _same_text(tokenizer, right):
        by_class, tokenizer = tokenizer, PreTrainedTokenizerFast.from_pretrained(str(folder))
        _keep_special_tokens(tokenizer, by_class, right)
        for part in _PARTS:  # an option of tokenizer_config.json may have changed it
            setattr(tokenizer.backend_tokenizer, part, getattr(right, part))
    config = folder / CONFIG
    _follow_ends(tokenizer, right, json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {})
    return tokenizer


def _check_json(folder: Path) -> None:
    for file in (folder / FILE, folder / CONFIG):
        try:
            json.loads(file.read_bytes()) if file.is_file() else None
        except ValueError as error:
            raise ValueError(f"{file.name} is not JSON ({error}); write it again") from error


def _same_text(tokenizer: Any, right: Tokenizer) -> bool:
    """Whether a tokenizer turns text into ids and back as the file does, special tokens that it adds aside."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or any(_state(getattr(inner, part)) != _state(getattr(right, part)) for part in _PARTS):
        return False
    return _added_tokens(right) <= _added_tokens(inner)


def _state(part: Any) -> bytes | None:
    return None if part is None else part.__getstate__()


def _added_tokens(inner: Tokenizer) -> set[tuple[Any, ...]]:
    added = inner.get_added_tokens_decoder().items()
    return {(i, one.content, one.lstrip, one.rstrip, one.single_word, one.normalized) for i, one in added}


def _keep_special_tokens(tokenizer: Any, by_class: Any, right: Tokenizer) -> None:
    """Special tokens that no file names, but the class does (GPT-2's <|endoftext|>), where the file has them."""
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = getattr(by_class, role)
        if getattr(tokenizer, role) is None and token is not None and right.token_to_id(str(token)) is not None:
            setattr(tokenizer, role, token)


def _follow_ends(tokenizer: Any, right: Tokenizer, config: dict[str, Any]) -> None:
    """Add the ends of a sequence as tokenizer_config.json says explicitly, else as tokenizer.json does."""
    ids = right.encode("a", add_special_tokens=True).ids
    found = {
        "add_bos_token": tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id],
        "add_eos_token": tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id],
    }
    wanted = found | {end: config[end] for end in found if isinstance(config.get(end), bool)}
    if wanted != found:
        set_ends(tokenizer, add_bos=wanted["add_bos_token"], add_eos=wanted["add_eos_token"])
    elif right.post_processor is not None:  # which may add more than the ends
        _note_ends(tokenizer, **wanted)
        tokenizer.backend_tokenizer.post_processor = right.post_processor


def set_ends(tokenizer: Any, *, add_bos: bool, add_eos: bool) -> None:
    """Have a fast tokenizer begin with its BOS token and end with its EOS token, or not; a missing token is not added."""
    from tokenizers import processors

    ends = [
        (tokenizer.bos_token, tokenizer.bos_token_id) if add_bos and tokenizer.bos_token_id is not None else None,
        (tokenizer.eos_token, tokenizer.eos_token_id) if add_eos and tokenizer.eos_token_id is not None else None,
    ]
    _note_ends(tokenizer, add_bos_token=ends[0] is not None, add_eos_token=ends[1] is not None)

    def piece(sequence: str, number: int) -> list[str]:
        first, last = (f"{end[0]}:{number}" if end else "" for end in ends)
        return [text for text in (first, f"{sequence}:{number}", last) if text]

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=piece("$A", 0), pair=[*piece("$A", 0), *piece("$B", 1)], special_tokens=list({end for end in ends if end})
    )


def _note_ends(tokenizer: Any, *, add_bos_token: bool, add_eos_token: bool) -> None:
    # The public setters would write a template of their own; transformers reads these when it writes one later.
    object.__setattr__(tokenizer, "_add_bos_token", add_bos_token)
    object.__setattr__(tokenizer, "_add_eos_token", add_eos_token)
