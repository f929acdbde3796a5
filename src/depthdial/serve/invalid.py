"""What pydantic finds wrong with a request, as one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.serve.errors import ApiError
from depthdial.serve.schemas import ChatRequest, CompletionRequest

_KNOWN = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
_PROMPT = "a prompt is a text, a list of texts, token ids, or a list of lists of them"


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The error of the first thing that is wrong.

    Args:
        errors: of pydantic, at least one.
    """
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, 'The body is not JSON: send an object such as {"model": ".."}.', code="invalid_json")
    if not where:
        return ApiError(400, "The body is not a JSON object: send one with the request's fields.", code="invalid_json")
    param = where[0]
    if first["type"] == "extra_forbidden":
        name = ".".join(where)
        near = difflib.get_close_matches(param, _KNOWN, n=1) if len(where) == 1 else []
        remedy = f"did you mean {near[0]!r}?" if near else "leave it out."
        return ApiError(400, f"There is no field {name[:80]!r}: {remedy}", param=name[:80], code="unknown_parameter")
    if first["type"] == "missing":
        name = ".".join(where)
        return ApiError(400, f"The field {name!r} is missing: give it.", param=name, code="missing_parameter")
    if param == "prompt":
        return ApiError(400, f"The prompt cannot be read: {_PROMPT}.", param="prompt", code="invalid_type")
    told = " ".join(str(first["msg"]).split()).rstrip(".")
    value = " ".join(repr(first.get("input")).split())
    value = value if len(value) <= 60 else value[:57] + "..."
    # Of a union pydantic names the branch too, which is no field.
    name = ".".join(
        part for part in where if part == where[0] or part.isdigit() or part in ("role", "content", "type", "text")
    )
    return ApiError(400, f"The field {name} is {value}: {told[:1].lower() + told[1:]}.", param=name, code="invalid_type")
