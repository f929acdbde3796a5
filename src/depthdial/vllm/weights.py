# pyright: reportMissingImports=false
"""vLLM's loading of weights: of a route's layers alone, or of all of them with those outside the route for prompts only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from depthdial.errors import InputError
from depthdial.vllm.settings import served_by
from depthdial.vllm.skeleton import Served
from depthdial.vllm.wrap import wrap


def install() -> None:
    """Have vLLM's loaders follow a route."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    wrap(BaseModelLoader, "load_model", _load)
    wrap(DefaultModelLoader, "get_all_weights", _weights)


def of_route(weights: Iterable[tuple[str, Any]], found: Served) -> Iterator[tuple[str, Any]]:
    """The weights of the layers that a route runs, numbered as in a model of those alone, and all that are in no layer.

    Args:
        weights: (name in the checkpoint, weight).

    Raises:
        InputError: if weights of a layer of the route are missing.

    Example:
        >>> from depthdial.vllm.skeleton import Served
        >>> from depthdial.vllm.weights import of_route
        >>> served = Served(dd.Route((0, 2), 3), "route", "layers")
        >>> [name for name, _ in of_route([("layers.0.w", 0), ("layers.1.w", 1), ("layers.2.w", 2), ("norm.w", 3)], served)]
        ['layers.0.w', 'layers.1.w', 'norm.w']
    """
    numbered = re.compile(rf"(?:^|\.){re.escape(found.list_name)}\.(\d+)\.")
    place = {layer: new for new, layer in enumerate(found.route.layers)}
    missing = set(place)
    for name, weight in weights:
        match = numbered.search(name)
        if match is None:
            yield name, weight
            continue
        layer = int(match[1])
        if layer in place:
            missing.discard(layer)
            yield f"{name[: match.start(1)]}{place[layer]}{name[match.end(1) :]}", weight
    if missing:
        raise InputError(
            f"The checkpoint has no weights of layer {min(missing)} under the name {found.list_name}.{min(missing)}: "
            "give a folder that transformers wrote, or set the prompt depth to 'full'."
        )


def _weights(get: Any, loader: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
    weights, found = get(loader, model_config, *args, **kwargs), served_by(model_config.hf_config)
    return weights if found is None or found.prompt_depth == "full" else of_route(weights, found)


def _load(load: Any, loader: Any, vllm_config: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    found = served_by(model_config.hf_config)
    if found is not None and found.prompt_depth == "route" and not isinstance(loader, DefaultModelLoader):
        raise InputError(
            f"The load format {loader.load_config.load_format} cannot leave out layers: use --load-format auto, or set the "
            "prompt depth to 'full'."
        )
    model = load(loader, vllm_config, model_config, *args, **kwargs)
    if found is not None and found.prompt_depth == "full":
        from depthdial.vllm.prompts import run_for_prompts_alone

        run_for_prompts_alone(model, found.route, vllm_config)
    return model
