"""The usage of a response: OpenAI's counts of tokens, and which layers ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdial.engine.generation import Generation
from depthdial.routes import Route
from depthdial.serve.depths import Chosen


def usage_of(chosen: Chosen, n_layers: int, prompt_tokens: int, answers: Sequence[Generation]) -> dict[str, Any]:
    """`usage`, whose `depthdial` says how each answer ran: layers and times as they were measured.

    `layers_run` is a mean over the tokens after the first, which comes out of the prompt's pass.
    """
    new_tokens = sum(answer.new_tokens for answer in answers)
    steps = [max(answer.new_tokens - 1, 0) for answer in answers]
    told = [_answer(index, answer) for index, answer in enumerate(answers)]
    known = [(one["layers_run"], n) for one, n in zip(told, steps, strict=True) if one["layers_run"] is not None]
    weight = sum(n for _, n in known)
    mean = sum(layers * n for layers, n in known) / weight if weight else (known[0][0] if known else None)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "depthdial": {
            "depth": chosen.label,
            "route": _same([one["route"] for one in told]),
            "route_layers": _same([one["route_layers"] for one in told]),
            "layers_run": mean,
            "layers": n_layers,
            "prompt_depth": chosen.prompt_depth,
            "answers": told,
        },
    }


def _answer(index: int, answer: Generation) -> dict[str, Any]:
    timed = answer.decode_sec > 0 and answer.new_tokens > 1
    found: dict[str, Any] = {
        "index": index,
        "route": answer.route.name,
        "route_layers": layers_text(answer),
        "layers_run": answer.layers_run,
        "tokens": answer.new_tokens,
        "queue_sec": answer.queue_sec,
        "prefill_sec": answer.prefill_sec,
        "decode_sec": answer.decode_sec,
        "tokens_per_sec": answer.tokens_per_sec if timed else None,
    }
    if answer.predicted is not None:
        found |= {"predicted": dict(answer.predicted), "price": answer.price}
    if answer.speculation is not None:
        found["speculation"] = str(answer.speculation)
    return found


def layers_text(answer: Generation) -> str | None:
    """The layers of an answer's route, such as `0-3,8,12-29`; None where each token had its own."""
    route = answer.route
    if not isinstance(route, Route):
        return None
    return f"0-{route.n_layers - 1}" if route.is_full and route.n_layers > 1 else str(route)


def _same(values: Sequence[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else None
