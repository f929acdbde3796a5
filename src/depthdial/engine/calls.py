"""What a call of `generate` and a request of an engine have in common: its checks and settings, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from depthdial.checks import choice, whole
from depthdial.engine.options import Options, read_options
from depthdial.engine.processors import Row, processors_of
from depthdial.engine.requests import Request
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap
from depthdial.views.passes import PROMPT_DEPTHS


def check_call(model: Any, prompt_depth: str, batch_size: int = 1) -> None:
    """InputError for a model that generates nothing, or an unknown `prompt_depth`."""
    base = unwrap(model)
    if not callable(getattr(base, "generate", None)):
        raise InputError(
            f"{type(base).__name__} cannot generate, for it has no language-modelling head: load the model with "
            "AutoModelForCausalLM."
        )
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    whole("batch_size", batch_size, 1)


def read_functions(name: str, given: Any) -> tuple[Any, ...]:
    """A caller's logits processors or stopping criteria.

    Raises:
        InputError: for anything else than a list of functions.
    """
    several = () if given is None else given
    if not isinstance(several, Iterable) or isinstance(several, str | Mapping):
        raise InputError(f"The argument {name} is a list of functions, not {type(given).__name__}: put it in a list.")
    found = tuple(several)
    other = next((one for one in found if not callable(one)), None)
    if other is not None:
        raise InputError(f"The argument {name} is a list of functions, and {other!r} is none: leave it out.")
    return found


def read_settings(
    session: Session, requests: Sequence[Request], processors: Sequence[Any], **written: Any
) -> tuple[Options, list[int]]:
    """The options of a call, and the most tokens of the answer to each request.

    Args:
        processors: the caller's.
        written: what `read_options` reads.

    Raises:
        InputError: for an option that is unknown or not honoured, a value that cannot be used, or a prompt that leaves no
            room.
    """
    own = getattr(unwrap(session.given), "generation_config", None)
    options = read_options(own, ends=session.eos_token_ids, pad_token_id=session.pad_token_id, **written)
    limits = [options.limit(len(request.ids), session.context_tokens) for request in requests]
    embeddings: Any = unwrap(session.model).get_input_embeddings()
    vocabulary = int(embeddings.weight.shape[0])
    largest = max(max(request.ids) for request in requests)
    if largest >= vocabulary:
        raise InputError(
            f"A prompt has token {largest}, and the model's end at {vocabulary - 1}: give the tokenizer that belongs to it."
        )
    first = torch.tensor([requests[0].ids], device=session.device)
    # Made for the errors of values that no processor takes.
    processors_of(options, processors, Row(first, limits[0], vocabulary, options.ends))
    return options, limits
