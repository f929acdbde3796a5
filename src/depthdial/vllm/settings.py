# pyright: reportMissingImports=false
"""vLLM's reading of options and configurations: where the route comes in, and what must be set for it."""

from __future__ import annotations

import logging
from typing import Any

from depthdial.errors import InputError
from depthdial.vllm.request import PROMPT_DEPTH, requested
from depthdial.vllm.skeleton import Served, served
from depthdial.vllm.wrap import wrap

_LOG = logging.getLogger("vllm.depthdial")
# On a configuration: the route as JSON, which vLLM carries to all its processes.
_ATTRIBUTE = "depthdial"


def install() -> None:
    """Have vLLM read routes."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.transformers_utils import config

    wrap(EngineArgs, "create_engine_config", _create)
    for name, parser in config._CONFIG_FORMAT_TO_CONFIG_PARSER.items():
        wrap(parser, "parse", _with_route if name == "hf" else _without_route)


def served_by(config: Any) -> Served | None:
    """The route of a model that vLLM builds by a configuration of transformers; None for all layers."""
    fields = getattr(config, _ATTRIBUTE, None)
    return None if fields is None else Served.of_json(fields)


def _with_route(parse: Any, parser: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    request = requested(model, kwargs.get("hf_overrides"))
    document, config = parse(parser, model, *args, **kwargs)
    if request is None:
        return document, config
    found, cut = served(config, request)
    if found.route.is_full:
        return document, config
    _check_quantization(document, found)
    setattr(cut, _ATTRIBUTE, found.to_json())
    _LOG.info(
        "Depthdial: answers run %d of the %d layers of %s (%s); prompts run %s.",
        *(len(found.route), found.route.n_layers, model, found.route),
        "all of them" if found.prompt_depth == "full" else "the same",
    )
    return document, cut


def _without_route(parse: Any, parser: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    if requested(model, kwargs.get("hf_overrides")) is not None:
        raise InputError(
            f"{model} has no configuration of transformers that a route could be read by: give a folder with config.json."
        )
    return parse(parser, model, *args, **kwargs)


def _check_quantization(document: dict[str, Any], found: Served) -> None:
    """Refuse a quantised checkpoint whose configuration names single layers, where layers are numbered anew."""
    if found.prompt_depth == "full":
        return
    text = str(document.get("quantization_config", ""))
    if f".{found.list_name}." in text or f"'{found.list_name}." in text:
        raise InputError(
            "The quantization of this checkpoint names single layers, which a route numbers anew: set the prompt depth to "
            "'full'."
        )


def _create(create: Any, arguments: Any, *args: Any, **kwargs: Any) -> Any:
    request = requested(arguments.model, arguments.hf_overrides)
    if request is not None and request.prompt_depth == "full":
        _prepare(arguments)
    try:
        return create(arguments, *args, **kwargs)
    except ValueError as error:
        found = _input_error(error)
        if found is None:
            raise
        raise InputError(str(found)) from None


def _input_error(error: ValueError) -> InputError | None:
    """The error of Depthdial in one of pydantic, which puts lines of its own around what a check raises."""
    told = getattr(error, "errors", list)()
    inner = [one.get("ctx", {}).get("error") for one in told]
    return next((one for one in (error, *inner) if isinstance(one, InputError)), None)


def _prepare(arguments: Any) -> None:
    """Set what prompts at full depth need, and refuse what they cannot go with."""
    cannot = {
        "--enable-prefix-caching": arguments.enable_prefix_caching,
        "--speculative-config": arguments.speculative_config,
        "--kv-transfer-config": arguments.kv_transfer_config,
        "--pipeline-parallel-size above 1": arguments.pipeline_parallel_size > 1,
    }
    for option, is_given in cannot.items():
        if is_given:
            raise InputError(
                f"Prompts at full depth do not go with {option}: leave it out, or set {PROMPT_DEPTH} to 'route'."
            )
    arguments.enforce_eager, arguments.enable_prefix_caching = True, False
