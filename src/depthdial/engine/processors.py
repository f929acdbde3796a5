"""The logits processors of the options that generate honours, for one row or for all.

They are transformers' and come in its order, with logit_bias before them, and presence_penalty and frequency_penalty right
behind repetition_penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.options import Options
from depthdial.engine.penalties import CountPenalty, LogitBias
from depthdial.engine.truncation import TopP
from depthdial.errors import InputError, one_line

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """What processors need to know of one answer.

    Attributes:
        prompt: (1, n_tokens) ids, without padding.
        limit: most tokens of the answer.
        vocabulary: size of the logits.
    """

    prompt: torch.Tensor
    limit: int
    vocabulary: int
    ends: tuple[int, ...]

    @property
    def prompt_tokens(self) -> int:
        return self.prompt.shape[1]

    @property
    def device(self) -> Any:
        return self.prompt.device


# Those that read the logits alone, so that one call serves all rows; the others are made for each row, on its own tokens:
# in a padded batch they would read the padding too.
_BLIND = frozenset(
    ("remove_invalid_values", "suppress_tokens", "renormalize_logits", "temperature", "top_h", "top_k", "top_p", "min_p")
) | {"typical_p", "epsilon_cutoff", "eta_cutoff", "logit_bias"}


def reads_tokens(options: Options, own: Sequence[Any]) -> bool:
    """Whether a processor reads the tokens of its row, and not the logits alone."""
    return bool(own) or any(name not in _BLIND for name in options.values)


def processors_of(options: Options, own: Sequence[Any], row: Row) -> list[Processor]:
    """What changes the logits of a row (or of all rows, where none of them reads tokens), in order.

    Args:
        own: the caller's processors: they come after those of options and before how tokens are drawn, and one of the same
            class as an option's takes its place, as in transformers.

    Raises:
        InputError: for a value that an option's processor does not take.
    """
    first = [made for name in _BEFORE if (made := _built(options, name, row)) is not None]
    merged: list[Any] = [next((mine for mine in own if type(mine) is made.kind), made) for made in first]
    merged += [mine for mine in own if all(mine is not one for one in merged)]
    last = [made for name in _AFTER if (made := _built(options, name, row)) is not None]
    return [*merged, *last]


def _built(options: Options, name: str, row: Row) -> _Checked | None:
    value = options.values.get(name)
    if value is None or (name == "min_length" and "min_new_tokens" in options.values):
        return None
    from transformers.generation import logits_process

    try:
        made = _BUILDERS[name](logits_process, value, row)
    except InputError:
        raise
    except Exception as error:  # transformers checks values in many ways
        raise _refusal(name, value, error) from error
    return None if made is None else _Checked(name, value, made)


def _refusal(name: str, value: Any, error: Exception) -> InputError:
    reason = one_line(error, 160).rstrip(".") or type(error).__name__
    return InputError(f"The option {name}={value!r} cannot be used ({reason}): give another value, or leave it out.")


class _Checked:
    """A processor of an option: an error that it raises on an unknown token concerns the option's value."""

    def __init__(self, name: str, value: Any, made: Processor) -> None:
        self._name, self._value, self._made = name, value, made
        self.kind = type(made)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        try:
            return self._made(ids, scores)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise _refusal(self._name, self._value, error) from error


def _needs_end(build: Callable[[Any, Any, Row], Any]) -> Callable[[Any, Any, Row], Any]:
    """As in transformers: without an end token there is nothing to hold back."""
    return lambda p, v, row: build(p, v, row) if row.ends and v > 0 else None


def _decay(p: Any, v: Any, row: Row) -> Any:
    if not row.ends:
        raise InputError(
            "The argument exponential_decay_length_penalty raises the end token, and there is none: give eos_token_id."
        )
    return p.ExponentialDecayLengthPenalty(tuple(v), _ends(row), row.prompt_tokens)


def _begin(p: Any, v: Any, row: Row) -> Any:
    return p.SuppressTokensAtBeginLogitsProcessor(v, row.prompt_tokens, device=row.device)


def _watermark(p: Any, v: Any, row: Row) -> Any:
    from transformers import WatermarkingConfig

    config = WatermarkingConfig.from_dict(v) if isinstance(v, dict) else v
    config.validate()
    return config.construct_processor(row.vocabulary, row.device)


def _ends(row: Row) -> torch.Tensor | None:
    return torch.tensor(row.ends, device=row.device) if row.ends else None


_BUILDERS: dict[str, Callable[[Any, Any, Row], Any]] = {
    "logit_bias": lambda p, v, row: LogitBias(v, row.vocabulary, row.device),
    "sequence_bias": lambda p, v, row: p.SequenceBiasLogitsProcessor(sequence_bias=v),
    "encoder_repetition_penalty": lambda p, v, row: (
        None if v == 1 else p.EncoderRepetitionPenaltyLogitsProcessor(penalty=v, encoder_input_ids=row.prompt)
    ),
    "repetition_penalty": lambda p, v, row: None if v == 1 else p.RepetitionPenaltyLogitsProcessor(v),
    "presence_penalty": lambda p, v, row: CountPenalty(row.prompt_tokens, presence=v),
    "frequency_penalty": lambda p, v, row: CountPenalty(row.prompt_tokens, frequency=v),
    "no_repeat_ngram_size": lambda p, v, row: p.NoRepeatNGramLogitsProcessor(v) if v != 0 else None,
    "encoder_no_repeat_ngram_size": lambda p, v, row: (
        p.EncoderNoRepeatNGramLogitsProcessor(v, row.prompt) if v != 0 else None
    ),
    "bad_words_ids": lambda p, v, row: p.NoBadWordsLogitsProcessor(v, _ends(row)),
    "min_length": _needs_end(lambda p, v, row: p.MinLengthLogitsProcessor(v, _ends(row), device=row.device)),
    "min_new_tokens": _needs_end(
        lambda p, v, row: p.MinNewTokensLengthLogitsProcessor(row.prompt_tokens, v, _ends(row), device=row.device)
    ),
    "forced_bos_token_id": lambda p, v, row: p.ForcedBOSTokenLogitsProcessor(v),
    "forced_eos_token_id": lambda p, v, row: p.ForcedEOSTokenLogitsProcessor(
        row.prompt_tokens + row.limit, v, device=row.device
    ),
    "remove_invalid_values": lambda p, v, row: p.InfNanRemoveLogitsProcessor() if v is True else None,
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": lambda p, v, row: p.SuppressTokensLogitsProcessor(v, device=row.device),
    "begin_suppress_tokens": _begin,
    "temperature": lambda p, v, row: None if v == 1 else p.TemperatureLogitsWarper(float(v)),
    "top_h": lambda p, v, row: p.TopHLogitsWarper(top_h=v),
    "top_k": lambda p, v, row: None if v == 0 else p.TopKLogitsWarper(top_k=v),
    "top_p": lambda p, v, row: None if v == 1 else TopP(v, p.TopPLogitsWarper(top_p=v)),
    "min_p": lambda p, v, row: p.MinPLogitsWarper(min_p=v),
    "typical_p": lambda p, v, row: None if v == 1 else p.TypicalLogitsWarper(mass=v),
    "epsilon_cutoff": lambda p, v, row: None if v == 0 else p.EpsilonLogitsWarper(epsilon=v),
    "eta_cutoff": lambda p, v, row: None if v == 0 else p.EtaLogitsWarper(epsilon=v, device=row.device),
    "watermarking_config": _watermark,
    "renormalize_logits": lambda p, v, row: p.LogitNormalization() if v is True else None,
}
_BEFORE = (
    *("logit_bias", "sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    "begin_suppress_tokens",
)
_AFTER = tuple(name for name in _BUILDERS if name not in _BEFORE)
