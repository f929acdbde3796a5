"""Computation and cache of each decoder layer, counted while it runs and not read off a configuration.

Heads of several sizes, latent attention, differential attention, values of another width than keys: every architecture
names them in its own way, and transformers stores them in its own. So a twin of the model (shells without weights, on the
meta device, where a pass computes nothing) runs two and four tokens under torch's FLOP counter with eager attention, and its
real KV cache is measured. Of experts those count that a token is sent to, whatever the kernel computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from depthdial.errors import InputError
from depthdial.hf.architectures import decoder_stack
from depthdial.hf.cache_name import cache_of
from depthdial.hf.facts import ModelFacts, cached_window, experts_chosen, use_eager
from depthdial.hf.weights import state_tensors, stored_bytes
from depthdial.views.view import quiet_view


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs.

    Attributes:
        flops_per_token: of its matrices, the experts that one token meets among them.
        flops_per_token_pair: of attention, for each token that a token looks at, itself among them.
        window_tokens: how many tokens it looks at at most; None for all.
        weight_bytes: read for one token (of experts: those that it meets).
        kv_bytes_per_token: added to the KV cache, as transformers stores it.
        is_chunked: it looks at the tokens of its own stretch of `window_tokens` alone (Llama 4), not at the latest.
        cached_tokens: how many the cache keeps at most; None for all.
    """

    flops_per_token: float
    flops_per_token_pair: float
    window_tokens: int | None
    weight_bytes: float
    kv_bytes_per_token: float
    is_chunked: bool = False
    cached_tokens: int | None = None

    def in_sight(self, n_tokens: np.ndarray) -> np.ndarray:
        """Tokens that the last of `n_tokens` tokens sees, itself among them."""
        if self.window_tokens is None:
            return n_tokens
        if self.is_chunked:
            return (n_tokens - 1) % self.window_tokens + 1
        return np.minimum(n_tokens, self.window_tokens)


@dataclass(frozen=True)
class _Experts:
    """The experts of a layer: how many there are, and what one weighs."""

    count: int
    matrix_size: float
    bytes: float


@dataclass(frozen=True)
class _Pass:
    """What a pass of some tokens showed, by layer: FLOPs without experts, experts chosen by path, and the cache."""

    flops: list[float]
    chosen: dict[str, int]
    cache: list[Any]


def layer_costs(base: Any) -> tuple[LayerCost, ...]:
    """Of every decoder layer of a model, which stays as it is and computes nothing.

    Raises:
        InputError: if the model cannot be run on token ids.
    """
    with torch.no_grad():
        try:
            runs = _runs(base, on_meta=True)
        except Exception:
            try:  # a pass that looks at values (GPT-2's scale) needs them, and one that takes its experts apart the experts
                runs = _runs(base, on_meta=False, with_experts=True)
            except Exception as error:
                reason = " ".join(str(error).split())[:160].rstrip(".")
                raise InputError(
                    f"The cost of {type(base).__name__} cannot be counted, since it does not run on token ids "
                    f"({type(error).__name__}: {reason}): count on a model with its weights in memory."
                ) from error
    stated = ModelFacts.of(base)
    return tuple(_cost(base, stated, i, *runs) for i in range(stated.n_layers))


def _cost(base: Any, stated: ModelFacts, index: int, short: _Pass, long: _Pass) -> LayerCost:
    layer = decoder_stack(base).layers[index]
    # Eager attention computes all pairs: F(n) = n * by_token + n^2 * by_pair, for two and for four tokens.
    by_pair = (long.flops[index] - 2 * short.flops[index]) / 8
    by_token = (short.flops[index] - 4 * by_pair) / 2
    weight_bytes = held_bytes(layer)
    for path, experts in _experts(layer).items():
        whole = held_bytes(layer.get_submodule(path))
        name = f"{index}.{path}"
        chosen = short.chosen.get(name) or experts_chosen(layer, path, base, index)
        weight_bytes += experts.bytes * chosen - whole
        if name in short.chosen:  # its stand-in computed nothing
            by_token += 2 * experts.matrix_size * chosen
    window, is_chunked, kept = _window(stated, index, short.cache)
    return LayerCost(by_token, by_pair, window, weight_bytes, _cached_bytes(short.cache, index), is_chunked, kept)


def held_bytes(module: nn.Module) -> float:
    """The memory of a module's weights, in bytes; of quantised ones as they are stored, with their scales."""
    held = sum(map(stored_bytes, module.parameters()))
    for packed in filter(_is_packed, module.modules()):
        own = dict(packed.named_parameters())
        held += sum(stored_bytes(tensor) for name, tensor in state_tensors(packed) if name not in own)
    return float(held)


def matrix_size(module: nn.Module) -> float:
    """How many weights of a module's matrices a token is multiplied with."""
    if _is_packed(module):
        return float(module.in_features * module.out_features)  # type: ignore[operator]
    return float(sum(p.numel() for p in module.parameters() if p.ndim >= 2))


def _runs(base: Any, *, on_meta: bool, with_experts: bool = False) -> tuple[_Pass, _Pass]:
    twin = quiet_view(base, range(decoder_stack(base).n_layers), check=False).eval()
    for module in twin.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[table].clear()
    use_eager(twin)
    chosen: dict[str, int] = {}
    for index, layer in enumerate(decoder_stack(twin).layers):
        for path in _experts(layer):
            if not with_experts and not isinstance(layer.get_submodule(path), nn.ModuleList):
                _replace(layer, path, _StandIn(chosen, f"{index}.{path}"))
    if on_meta:
        _move_to_meta(twin, base.dtype)
    device = "meta" if on_meta else base.get_input_embeddings().weight.device
    first, second = (_run(twin, n_tokens, device) for n_tokens in (2, 4))
    sizes = {name: k or 0 for name, k in chosen.items()}
    for one in (first, second):
        one.chosen.update({name: k or _named(twin, name, base) for name, k in sizes.items()})
    return first, second


def _named(twin: Any, name: str, base: Any) -> int:
    index, path = name.split(".", 1)
    layer = decoder_stack(twin).layers[int(index)]
    return experts_chosen(layer, path, base, int(index))


def _run(twin: Any, n_tokens: int, device: Any) -> _Pass:
    layers, flops = decoder_stack(twin).layers, [0.0] * decoder_stack(twin).n_layers
    ids = torch.zeros(1, n_tokens, dtype=torch.long, device=device)
    hooks = []
    with FlopCounterMode(display=False) as counter:
        for i, layer in enumerate(layers):
            hooks.append(layer.register_forward_pre_hook(_add(flops, i, counter, -1)))
            hooks.append(layer.register_forward_hook(_add(flops, i, counter, 1)))
        try:
            cache = cache_of(twin(input_ids=ids, use_cache=True))
        finally:
            for hook in hooks:
                hook.remove()
    return _Pass(flops, {}, list(getattr(cache, "layers", ())))


def _add(flops: list[float], index: int, counter: FlopCounterMode, sign: int) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        flops[index] += sign * counter.get_total_flops()

    return hook


class _StandIn(nn.Module):
    """In place of a layer's experts: gives nothing, computes nothing, and says how many a token is sent to (0: unknown)."""

    def __init__(self, chosen: dict[str, int], name: str) -> None:
        super().__init__()
        self._chosen, self._name = chosen, name

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = [*args, *kwargs.values()]
        indices = [a for a in given if isinstance(a, torch.Tensor) and a.dtype in (torch.int32, torch.int64) and a.ndim > 1]
        self._chosen[self._name] = indices[0].shape[-1] if indices else 0
        return torch.zeros_like(hidden)


def _experts(layer: nn.Module) -> dict[str, _Experts]:
    """By path inside a layer: modules named experts, which hold all of them as tensors or as a list of modules."""
    found: dict[str, _Experts] = {}
    for path, module in layer.named_modules():
        if path.rsplit(".", 1)[-1] != "experts" or any(path.startswith(f"{outer}.") for outer in found):
            continue
        parameters = list(module.parameters())
        cubes = [p for p in parameters if p.ndim == 3]
        count = len(module) if isinstance(module, nn.ModuleList) else cubes[0].shape[0] if cubes else 0
        if count:
            matrices = parameters if isinstance(module, nn.ModuleList) else cubes
            size = sum(p.numel() for p in matrices if p.ndim > 1) / count
            found[path] = _Experts(count, size, held_bytes(module) / count)
    return found


def _replace(layer: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    layer.get_submodule(parent)._modules[name] = module


def _move_to_meta(twin: nn.Module, dtype: torch.dtype) -> None:
    for module in list(twin.modules()):
        if "_hf_hook" in module.__dict__:  # accelerate's, which would move weights
            module.__dict__.pop("forward", None)
        for name, child in module._modules.items():
            if child is not None and _is_packed(child):
                n_in, n_out = child.in_features, child.out_features
                module._modules[name] = nn.Linear(n_in, n_out, bias=False, device="meta", dtype=dtype)  # type: ignore[arg-type]
    for module in twin.modules():
        tables: list[Any] = [module._parameters, module._buffers]
        for table in tables:
            for name, value in table.items():
                if value is not None:
                    there = value.detach().to("meta")
                    table[name] = nn.Parameter(there, requires_grad=False) if isinstance(value, nn.Parameter) else there


def _is_packed(module: nn.Module) -> bool:
    """A linear module whose weight is quantised: packed into another shape, or a tensor of its own kind."""
    sizes = [getattr(module, name, None) for name in ("out_features", "in_features")]
    weight = getattr(module, "weight", None)
    is_dynamic = callable(weight)  # torch.ao's, which packs it into a child
    if (module._modules and not is_dynamic) or not all(isinstance(size, int) for size in sizes):
        return False
    is_plain = isinstance(weight, torch.Tensor) and list(weight.shape) == sizes and weight.is_floating_point()
    return not (is_plain and type(weight.data) is torch.Tensor)  # type: ignore[union-attr]


def _cached_bytes(cache: list[Any], index: int) -> float:
    if index >= len(cache) or not isinstance(getattr(cache[index], "keys", None), torch.Tensor):
        return 0.0
    held = [t for t in cache[index].__dict__.values() if isinstance(t, torch.Tensor) and t.ndim > 2]
    n_tokens = cache[index].keys.shape[-2]
    return sum(t.numel() * t.element_size() for t in held) / n_tokens if n_tokens else 0.0


def _window(stated: ModelFacts, index: int, cache: list[Any]) -> tuple[int | None, bool, int | None]:
    """(tokens in sight, whether by chunks, tokens that the cache keeps, which may be all and more than are in sight)."""
    held = cached_window(cache[index]) if index < len(cache) else None
    kept = None if held is None else held - 1
    in_sight = stated.windows[index] if stated.chunked[index] or held is None else held
    return in_sight, stated.chunked[index], kept
