"""Arguments of a forward pass by name, and which of its columns belong to the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch

from depthdial.checks import whole
from depthdial.errors import InputError
from depthdial.hf.cache_name import argument_name, renamed
from depthdial.hf.facts import setting as config_setting
from depthdial.routes.families import PROMPT_DEPTHS as PROMPT_DEPTHS

PromptDepth = Literal["full", "route"]

# Cut by their last dimension where a pass is split; `cache_position` is from before transformers 5.13.
_BY_COLUMN = ("position_ids", "cache_position", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def by_name(model: Any, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass by their names, those of its `**kwargs` among them, and the cache by its own."""
    kwargs = renamed(kwargs, argument_name(signature.parameters))
    given = dict(signature.bind_partial(model, *args, **kwargs).arguments)
    given.pop(next(iter(signature.parameters)))
    *_, last = signature.parameters.values()
    if last.kind is inspect.Parameter.VAR_KEYWORD:  # mostly called kwargs
        given.update(given.pop(last.name, {}))
    return given


def setting(model: Any, given: Mapping[str, Any], name: str, default: bool = True) -> bool:
    """What a caller says, or else the model's configuration, or else `default`."""
    said = given.get(name)
    return config_setting(model, name, default) if said is None else said


def tokens_of(given: Mapping[str, Any]) -> torch.Tensor:
    """(n_sequences, n_tokens) of a pass: its ids, or one number of each embedding; InputError without any."""
    if given.get("input_ids") is not None:
        return given["input_ids"]
    if given.get("inputs_embeds") is None:
        raise InputError("There are no tokens to run: pass input_ids or inputs_embeds.")
    return given["inputs_embeds"][..., 0]


def n_prompt(prompt_columns: int, n_past: int, n_tokens: int) -> int:
    """How many columns of a pass of `n_tokens` behind `n_past` cached ones are the prompt's."""
    return min(max(whole("prompt_columns", prompt_columns, 0) - n_past, 0), n_tokens)


def split(given: Mapping[str, Any], n_first: int, n_past: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a pass as those of two, its first `n_first` columns and the rest; InputError if one has no parts."""
    first, rest = dict(given), dict(given)
    n_tokens = tokens_of(given).shape[1]
    for name, value in given.items():
        if not isinstance(value, torch.Tensor | dict) or name == "logits_to_keep":
            continue
        if name in ("input_ids", "inputs_embeds"):
            first[name], rest[name] = value[:, :n_first], value[:, n_first:]
        elif name == "attention_mask" and isinstance(value, torch.Tensor) and value.ndim == 2:
            first[name] = value[:, : n_past + n_first]
        elif name in _BY_COLUMN and isinstance(value, torch.Tensor) and value.shape[-1] == n_tokens:
            first[name], rest[name] = value[..., :n_first], value[..., n_first:]
        else:
            raise InputError(
                f"The argument {name} cannot be split between the prompt and the response of one pass: leave it out, or run "
                "the prompt in a pass of its own."
            )
    keep, n_rest = given.get("logits_to_keep"), n_tokens - n_first
    if isinstance(keep, int) and keep:
        first["logits_to_keep"], rest["logits_to_keep"] = max(keep - n_rest, 1), min(keep, n_rest)
    else:  # all of them, or some by their places, picked afterwards
        first["logits_to_keep"] = rest["logits_to_keep"] = 0
    return first, rest


def join_logits(first: torch.Tensor, rest: torch.Tensor, given: Mapping[str, Any], n_rest: int) -> torch.Tensor:
    """Logits of both parts of a pass, (n_sequences, n_kept, vocabulary), as `logits_to_keep` asks for them."""
    keep = given.get("logits_to_keep")
    if isinstance(keep, int) and 0 < keep <= n_rest:
        return rest
    logits = torch.cat([first.to(rest), rest], dim=1)
    return logits[:, keep] if isinstance(keep, torch.Tensor) else logits


def positions(attention_mask: torch.Tensor, n_last: int | None = None) -> torch.Tensor:
    """Position of each token among the real ones, as transformers' `generate` counts them; of the last `n_last` columns."""
    places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return places if n_last is None else places[:, -n_last:]
