"""The options of `dd.generate`: a list of what is honoured, and for everything else one sentence.

Settings come from three places: the model's own generation_config, the caller's, and keywords, of which the later win, as in
transformers. An option that is not on the list never passes silently. One that only changes how fast transformers' own
`generate` is, or what it returns beside the tokens, is refused where a caller asks for it; where it merely stands in a
generation_config that came with the model, the answer is the same without it.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.checks import number, whole
from depthdial.engine.penalties import PENALTIES, read_penalties
from depthdial.engine.refusals import REFUSED
from depthdial.errors import InputError

DEFAULT_NEW_TOKENS = 64

# How a token is drawn; without effect on greedy answers.
SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# Of which texts, True or what is no number would be taken without a word.
_NUMBERS = ("temperature", "top_p")
# What else changes the logits, greedy or not.
LOGITS = (
    *("sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "watermarking_config", "renormalize_logits"),
)
ENDING = ("max_new_tokens", "max_length", "stop_strings", "eos_token_id")
PASSES = ("guidance_scale", "prefill_chunk_size")
OUTPUT = ("num_return_sequences", "logprobs")
# Not transformers', whose own generate passes over them in a model's generation_config.
OTHERS = frozenset((*PENALTIES, "logprobs", "n", "stop_in_answer"))
HONOURED = OTHERS.union(SAMPLING, LOGITS, ENDING, PASSES, OUTPUT, ("do_sample", "pad_token_id", "bos_token_id"))

# transformers' value of what nobody sets; the others' do nothing.
_TOP_K = 50
# Where a sampling option has no effect.
_NEUTRAL_SAMPLING = {"temperature": (0, 1), "top_k": (0, _TOP_K), "top_p": (1,), "typical_p": (1,)}


@dataclass(frozen=True)
class Options:
    """What is honoured, once all places have been read.

    Attributes:
        values: options that change logits or how tokens are drawn, as given.
        ends: tokens that end an answer.
        max_new_tokens: most tokens of an answer; None where only `max_length` says.
        max_length: most tokens of prompt and answer together; None for any.
        stop_strings: texts that end an answer.
        seed: of all chance; None for greedy answers.
        guidance_scale: of classifier-free guidance; None for none.
        prefill_chunk_size: most tokens of a prompt's pass; None for all of them.
        n_answers: how many answers each prompt gets.
        logprobs: how many of the likeliest tokens are told at each position; None for no log-probabilities at all.
        stop_in_answer: whether a stop string ends an answer only where it stands wholly in it, as with OpenAI; transformers
            also counts one that began with the last words of the prompt.
    """

    values: Mapping[str, Any]
    ends: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int | None
    max_length: int | None
    stop_strings: tuple[str, ...]
    seed: int | None
    guidance_scale: float | None = None
    prefill_chunk_size: int | None = None
    n_answers: int = 1
    logprobs: int | None = None
    stop_in_answer: bool = False

    @property
    def is_sampled(self) -> bool:
        return self.seed is not None

    def limit(self, prompt_tokens: int, context_tokens: int | None) -> int:
        """How many tokens the answer to a prompt may have: at most what the prompt itself leaves of the context.

        Raises:
            InputError: if the prompt leaves no room.
        """
        room = None if context_tokens is None else context_tokens - prompt_tokens
        if room is not None and room < 1:
            raise InputError(f"A prompt has {prompt_tokens} tokens but the model's context is {context_tokens}: shorten it.")
        if self.max_new_tokens is not None:
            asked = self.max_new_tokens
        else:
            assert self.max_length is not None
            asked = self.max_length - prompt_tokens
            if asked < 1:
                raise InputError(
                    f"A prompt has {prompt_tokens} tokens, and max_length={self.max_length} counts them too: give "
                    "max_new_tokens instead."
                )
        return asked if room is None else min(asked, room)


def read_options(
    own: Any,
    *,
    ends: Sequence[int],
    pad_token_id: int,
    max_new_tokens: int | None,
    stop_strings: Any,
    generation_config: Any,
    seed: int | None,
    given: Mapping[str, Any],
) -> Options:
    """The options of one call.

    Args:
        own: the model's own generation_config, or None.
        ends, pad_token_id: where nobody says otherwise.
        generation_config: the caller's: a GenerationConfig or a dict.
        given: further keywords.

    Raises:
        InputError: for an option that is unknown or not honoured, or a value that cannot be used.
    """
    keywords = {**given, **({} if stop_strings is None else {"stop_strings": stop_strings})}
    passed = _fields(generation_config)
    models = _model_fields(own)
    _check_keywords(keywords, passed)
    _check_passed(passed, models)
    _check_own(models, {**passed, **keywords})
    merged = {**models, **passed, **keywords}
    is_sampled = _flag(merged, "do_sample")
    _check_sampling(keywords, merged, is_sampled)
    names = (*LOGITS, *SAMPLING) if is_sampled else LOGITS
    values = {name: merged[name] for name in names if merged.get(name) is not None} | read_penalties(merged)
    if is_sampled and "top_k" not in merged:
        values["top_k"] = _TOP_K
    new_tokens, max_length = _lengths(max_new_tokens, passed, keywords)
    return Options(
        values,
        _ends(keywords, passed, ends),
        pad_token_id if merged.get("pad_token_id") is None else _token_id(merged["pad_token_id"], "pad_token_id"),
        new_tokens,
        max_length,
        _stop_strings(merged.get("stop_strings")),
        _seed(seed) if is_sampled else _checked_seed(seed),
        _guidance_scale(merged.get("guidance_scale")),
        _whole(merged, "prefill_chunk_size", 1),
        _n_answers({**passed, **keywords}, models, is_sampled),
        _whole(merged, "logprobs", 0),
        _flag(merged, "stop_in_answer"),
    )


def _fields(config: Any) -> dict[str, Any]:
    """What a caller's generation_config sets."""
    if config is None:
        return {}
    from transformers import GenerationConfig

    if isinstance(config, Mapping):
        unreadable = next((name for name in config if not isinstance(name, str)), None)
        if unreadable is not None:
            raise InputError(
                f"The argument generation_config has a key {unreadable!r}: options have names, such as 'do_sample'."
            )
        found: Mapping[str, Any] = config
    elif isinstance(config, GenerationConfig):
        found = vars(config)
    else:
        raise InputError(
            f"The argument generation_config is a GenerationConfig or a dict, not {type(config).__name__}: give one of them."
        )
    return _set(found)


def _model_fields(own: Any) -> dict[str, Any]:
    """What a model's own generation_config sets of what its answers depend on; custom entries are not transformers'."""
    found = {} if own is None else _set(vars(own))
    return {name: value for name, value in found.items() if name in HONOURED - OTHERS or name in REFUSED}


def _set(found: Mapping[str, Any]) -> dict[str, Any]:
    about = ("transformers_version",)
    return {n: value for n, value in found.items() if value is not None and not n.startswith("_") and n not in about}


def _check_keywords(keywords: Mapping[str, Any], passed: Mapping[str, Any]) -> None:
    for name, value in keywords.items():
        if name not in HONOURED:
            _refuse(name, value, "", "leave {name} out")


def _check_passed(passed: Mapping[str, Any], models: Mapping[str, Any]) -> None:
    for name, value in passed.items():
        if name in HONOURED or (name in models and _is_same(models[name], value)):
            continue  # a copy of the model's own is judged as the model's own
        _refuse(name, value, " of generation_config", "leave {name} out")


def _check_own(models: Mapping[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in models.items():
        refusal = REFUSED.get(name)
        is_overridden = name in over and not _is_same(over[name], value)
        if refusal is not None and refusal.changes_answers and not is_overridden:
            _refuse(name, value, " of the model's generation_config", "give {name}=None to do without it")


def _refuse(name: str, value: Any, origin: str, remedy: str) -> None:
    refusal = REFUSED.get(name)
    if refusal is None:
        near = difflib.get_close_matches(name, HONOURED | _ARGUMENTS, n=1)
        instead = (
            f"did you mean {near[0]!r}?" if near else "those of transformers' GenerationConfig that can be honoured are."
        )
        raise InputError(f"There is no argument {name!r} that generate knows{origin}: {instead}")
    if not _asks_for_nothing(value, refusal.neutral):
        raise InputError(
            f"The option {name}={_short(value)}{origin} {refusal.why}: {remedy.format(name=name)}, or call generate on "
            "the model or on dd.prompted_view(model, route) yourself."
        )


# Of the function itself: for a slip of the pen.
_ARGUMENTS = frozenset(
    ("depth", "routes", "prompt_depth", "template", "batch_size", "on_text", "messages", "generation_config", "streamer")
) | {"seed", "logits_processor", "stopping_criteria"}


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    if value is None or (value is False and not any(one is True for one in neutral)):
        return True
    # True equals 1, and is not it.
    return any(type(value) in (type(one), float, int) and value == one for one in neutral)


def _check_sampling(keywords: Mapping[str, Any], merged: Mapping[str, Any], is_sampled: bool) -> None:
    if is_sampled:
        for name in _NUMBERS:
            if merged.get(name) is not None:
                number(name, merged[name])
        temperature = keywords.get("temperature")
        if temperature is not None and not isinstance(temperature, bool) and temperature == 0:
            raise InputError(
                "The argument temperature=0 leaves nothing to draw from: leave do_sample out for greedy answers."
            )
        return
    for name in SAMPLING:
        value = keywords.get(name)
        if value is not None and (isinstance(value, bool) or value not in _NEUTRAL_SAMPLING.get(name, ())):
            raise InputError(f"The option {name}={_short(value)} is for sampled answers: give do_sample=True too.")


def _lengths(argument: int | None, passed: Mapping[str, Any], keywords: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(max_new_tokens, max_length), of which the former wins wherever both are given, as in transformers.

    How long answers are is this function's own argument: what a checkpoint suggests, often its whole context, is not asked.
    """
    new_tokens = argument if argument is not None else passed.get("max_new_tokens")
    max_length = keywords.get("max_length", passed.get("max_length"))
    if new_tokens is None and max_length is None:
        new_tokens = DEFAULT_NEW_TOKENS
    for name, value in (("max_new_tokens", new_tokens), ("max_length", max_length)):
        if value is not None:
            whole(name, value, 1)
    return new_tokens, None if new_tokens is not None else max_length


def _ends(keywords: Mapping[str, Any], passed: Mapping[str, Any], default: Sequence[int]) -> tuple[int, ...]:
    if "eos_token_id" not in keywords and "eos_token_id" not in passed:
        return tuple(default)
    own = keywords["eos_token_id"] if "eos_token_id" in keywords else passed["eos_token_id"]
    if own is None:
        return ()
    if isinstance(own, torch.Tensor):
        own = own.tolist()
    several = own if isinstance(own, list | tuple) else [own]
    return tuple(_token_id(one, "eos_token_id") for one in several)


def _token_id(value: Any, name: str) -> int:
    try:
        found = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = -1
    if found < 0:
        raise InputError(f"The option {name} takes token ids, whole numbers from 0, not {_short(value)}: give one.")
    return found


def _stop_strings(given: Any) -> tuple[str, ...]:
    several = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(several, Iterable) or isinstance(several, bytes | Mapping):
        raise InputError(
            f"The argument stop_strings is a text or a list of texts, not {_short(given)}: give such as ['\\n\\n']."
        )
    texts = tuple(several)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InputError(f"A stop string is a text of at least one character, not {_short(text)}: leave it out.")
    return texts


def _n_answers(asked: Mapping[str, Any], models: Mapping[str, Any], is_sampled: bool) -> int:
    """What is asked for under either name; else the model's own setting."""
    names = ("num_return_sequences", "n")
    where = asked if any(name in asked for name in names) else models
    given = {name: n for name in names if (n := _whole(where, name, 1)) is not None}
    if len(set(given.values())) > 1:
        raise InputError(
            f"num_return_sequences={given['num_return_sequences']} and n={given['n']} are the same setting: give one."
        )
    for name, n in given.items():
        if n > 1 and not is_sampled:
            raise InputError(
                f"The option {name}={n} is for sampled answers, since greedy ones are all the same: give do_sample=True too."
            )
        return n
    return 1


def _whole(merged: Mapping[str, Any], name: str, least: int) -> int | None:
    value = merged.get(name)
    return None if value is None else whole(name, value, least)


def _guidance_scale(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"The option guidance_scale is a number, not {_short(given)}: give such as 1.5.")
    return None if given == 1 else float(given)


def _flag(merged: Mapping[str, Any], name: str) -> bool:
    value = merged.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"The option {name} is True or False, not {_short(value)}: give one of them.")
    return bool(value)


def _seed(seed: Any) -> int:
    """The caller's seed; else one from torch's generator, so that torch.manual_seed makes answers repeatable too."""
    checked = _checked_seed(seed, keep=True)
    return int(torch.randint(0, 2**62, ())) if checked is None else checked


def _checked_seed(seed: Any, *, keep: bool = False) -> int | None:
    if seed is None:
        return None
    try:
        found = None if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        found = None
    if found is None:
        raise InputError(f"A seed is a whole number, not {_short(seed)}: give such as seed=0.")
    return found if keep else None


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
