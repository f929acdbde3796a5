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
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
# What the model of a `tokenizers.Tokenizer` may be set to beside its vocabulary; absent ones compare equal.
_MODEL_OPTIONS = (
    "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout",
    "max_input_chars_per_word",
)  # fmt: skip
_PROBE = (
    "In 2024, 1234567 of 89 cost 3.14; ½ or ٣٤.\n\n1.  First\r\n\n\n2.\tdon't, I'LL, we've 's",
    "def f(x):\n    if x != 0x1F:\n\t\treturn {'a': [x**2, -1e-9]}  # ok\n",
    "  leading and trailing  ",
    "Ünïcodé e\u0301 ﬁ Ａ１ ß İ — “quoted”…",
    "日本語のテキスト。한국어 中文１２３ ไทย हिन्दी العربية עברית русский Ελληνικά",
    "🙂👩‍👩‍👧 \u200b\u00a0\u3000end",
)
_MOST_ADDED_TOKENS = 128


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
    config = _read_config(folder)
    if not _same_text(tokenizer, right):
        by_class, tokenizer = tokenizer, PreTrainedTokenizerFast.from_pretrained(str(folder))
        _keep_special_tokens(tokenizer, by_class, right)
        if not _same_text(tokenizer, right):  # an option of tokenizer_config.json has changed a part of it
            for part in (*_PARTS, "model"):
                setattr(tokenizer.backend_tokenizer, part, getattr(right, part))
    _follow_ends(tokenizer, right, config)
    return tokenizer


def _check_json(folder: Path) -> None:
    for file in (folder / FILE, folder / CONFIG):
        try:
            json.loads(file.read_bytes()) if file.is_file() else None
        except ValueError as error:
            raise ValueError(f"{file.name} is not JSON ({error}); write it again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _same_text(tokenizer: Any, right: Tokenizer) -> bool:
    """Whether a tokenizer turns text into ids and back as the file does, special tokens that it adds aside."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or type(inner.model) is not type(right.model):
        return False
    if inner.get_vocab_size(with_added_tokens=False) != right.get_vocab_size(with_added_tokens=False):
        return False
    if any(_state(getattr(inner, part)) != _state(getattr(right, part)) for part in _PARTS):
        return False
    if any(getattr(inner.model, name, None) != getattr(right.model, name, None) for name in _MODEL_OPTIONS):
        return False
    right.encode_special_tokens = inner.encode_special_tokens
    for text in (*_PROBE, _added_tokens_in_text(right)):
        ids = right.encode(text, add_special_tokens=False).ids
        if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] != ids:
            return False
        if inner.decode(ids, skip_special_tokens=False) != right.decode(ids, skip_special_tokens=False):
            return False
    return True


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _added_tokens_in_text(right: Tokenizer) -> str:
    """A text with the file's added tokens between words, between blanks and side by side."""
    tokens = [token.content for _, token in sorted(right.get_added_tokens_decoder().items())]
    shown = tokens[:_MOST_ADDED_TOKENS] + tokens[_MOST_ADDED_TOKENS:][-_MOST_ADDED_TOKENS:]
    return "".join(f"a{token}b {token} c" for token in shown) + "".join(shown)


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
