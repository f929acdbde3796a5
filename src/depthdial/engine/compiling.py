"""Compiling one decoder layer for small steps, ahead of time, with weights, cache and places as arguments.

One function serves all layers of a kind, on every route and with a window of any size: `torch.export` traces transformers'
own module, and AOTInductor compiles it. For a few tokens a linear layer is bound by reading its weight, so each is written
as sums over its rows, which the compiler fuses with what comes before and after, and which read at the memory's full rate.

Only `warmup` calls this: it takes seconds, a C++ compiler, and modules of PyTorch that are slow to import.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from depthdial.engine.attention import use_grouped_attention
from depthdial.engine.closeness import largest_difference
from depthdial.engine.compiled import Leaf
from depthdial.engine.layer_kinds import plain_forward, weights_of
from depthdial.errors import InputError, one_line
from depthdial.hf.architectures import accepts, decoder_stack, layer_states
from depthdial.hf.cache_name import cache_argument
from depthdial.views.view import quiet_view

# From so many tokens on, what is multiplied is put in memory first: recomputed for each row of a weight, it costs more.
_BARRIER_TOKENS = 3
# What the check runs with: (attended slots, slots of the slab).
_CHECKED_WINDOWS = ((64, 64), (192, 320), (320, 1024))
# Largest difference from transformers' layer, of the largest number: a few roundings (real layers have outliers).
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps}


class CannotCompileError(Exception):
    """Why a layer cannot be compiled.

    Attributes:
        is_final: whether it never can: not where the compiler failed, which may be for want of memory.
    """

    def __init__(self, reason: str, *, is_final: bool = True) -> None:
        super().__init__(reason)
        self.is_final = is_final

    @classmethod
    def by(cls, error: Exception, *, is_final: bool) -> CannotCompileError:
        return cls(f"{type(error).__name__}: {one_line(error)}", is_final=is_final)


@dataclass(frozen=True)
class LayerCall:
    """How transformers calls a layer, for one number of rows and tokens.

    Attributes:
        hidden: (rows, tokens, width).
        leaves: of what else it is called with.
        tensors: those of the leaves, in order.
        keys, values: (rows, kv_heads, window, width of a head).
        n_args, n_kwargs: how many are without and with a name.
    """

    hidden: torch.Tensor
    leaves: tuple[Leaf, ...]
    tensors: tuple[torch.Tensor, ...]
    spec: Any
    keys: torch.Tensor
    values: torch.Tensor
    n_args: int
    n_kwargs: int


class SlabCache:
    """What a layer sees as its KV cache: written at `positions`, (rows, tokens); given back are the attended slots."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, attended: Any) -> None:
        self._keys, self._values, self._positions, self._attended = keys, values, positions, attended

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # One indexed write into the slab itself: the compiler leaves it in place, where a reshaped slab would be copied.
        rows = torch.arange(keys.shape[0])[:, None]
        self._keys[rows, :, self._positions] = keys.transpose(1, 2)
        self._values[rows, :, self._positions] = values.transpose(1, 2)
        return self._keys[:, :, : self._attended], self._values[:, :, : self._attended]


def require_compiler() -> None:
    """InputError where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "Layers cannot be compiled without a C++ compiler, so everything runs uncompiled: install g++, or name one in "
            "the environment variable CXX."
        ) from error


def layer_call(model: Any, index: int, rows: int, tokens: int) -> LayerCall:
    """How the model's own forward calls layer `index` of a view of all its layers.

    Raises:
        CannotCompileError: if it is called with something that cannot be an argument of a compiled function.
    """
    from transformers.cache_utils import DynamicCache

    host: Any = quiet_view(model, [index], check=False)
    cache, positions = DynamicCache(), torch.arange(tokens).expand(rows, tokens).contiguous()
    dtype = next(host.parameters()).dtype
    # A mask of four dimensions is passed on as it is, and so the layer's argument can be told.
    mask = torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype).triu(1).expand(rows, 1, -1, -1).contiguous()
    inputs: dict[str, Any] = {"input_ids": torch.zeros_like(positions), "attention_mask": mask, "use_cache": True}
    if accepts(host, "position_ids"):
        inputs["position_ids"] = positions
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    layer = decoder_stack(host).layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with hook:
            host(**inputs, **cache_argument(host, cache))
    except Exception as error:  # whatever an architecture raises when it is called in a way of ours
        raise CannotCompileError.by(error, is_final=True) from error
    (hidden, *args), kwargs = seen[0]
    held: Any = cache.layers[0]
    if getattr(held, "keys", None) is None or held.keys.dim() != 4:
        raise CannotCompileError("its KV cache holds something else than keys and values")
    shapes = [*hidden.shape, *held.keys.shape, *held.values.shape]
    window = next(n for n in range(192, 10**6, 64) if n not in shapes and n + 64 not in shapes)
    wide = torch.zeros(rows, 1, tokens, window, dtype=hidden.dtype)
    found, spec = pytree.tree_flatten_with_path((tuple(args), kwargs))
    values = [wide if value is mask else value for _, value in found]
    leaves = tuple(_leaf(path, value, cache, window) for (path, _), value in zip(found, values, strict=True))
    if not any(value is wide for value in values) or not any(leaf.is_cache for leaf in leaves):
        raise CannotCompileError("its layers take no mask or no KV cache")
    keys_slab, values_slab = (
        one.new_zeros(rows, one.shape[1], window + 64, one.shape[3]) for one in (held.keys, held.values)
    )
    tensors = tuple(value for value in values if isinstance(value, torch.Tensor))
    return LayerCall(hidden.clone(), leaves, tensors, spec, keys_slab, values_slab, len(args), len(kwargs))


def _leaf(path: Sequence[Any], value: Any, cache: Any, window: int) -> Leaf:
    steps: tuple[Any, ...] = tuple(getattr(key, "idx", getattr(key, "key", None)) for key in path)
    if not all(isinstance(step, str | int) for step in steps):
        raise CannotCompileError(f"its layers take {pytree.keystr(tuple(path))}")
    if value is cache:
        return Leaf(steps, is_cache=True)
    if isinstance(value, torch.Tensor):
        return Leaf(steps, tuple(None if n == window else n for n in value.shape), str(value.dtype))
    if value is None or isinstance(value, bool | int | float | str):
        return Leaf(steps, value=value)
    raise CannotCompileError(f"its layers take a {type(value).__name__} {pytree.keystr(tuple(path))}")


def describe(call: LayerCall) -> dict[str, Any]:
    """A call as JSON holds it: what the compiled function is to be called with."""
    slabs = {name: [*slab.shape[:2], slab.shape[3]] for name, slab in (("keys", call.keys), ("values", call.values))}
    hidden = {"hidden": list(call.hidden.shape), "dtype": str(call.hidden.dtype)}
    return {
        **hidden,
        **slabs,
        "leaves": [asdict(leaf) for leaf in call.leaves],
        "n_args": call.n_args,
        "n_kwargs": call.n_kwargs,
    }


def compile_layer(model: Any, index: int, call: LayerCall) -> bytes:
    """Compile layer `index` of a view of all layers: what is to be in a file that ends in .pt2.

    The function takes hidden states, tensors, keys, values, places and weights, in this order, and returns hidden states.

    Raises:
        CannotCompileError: if the layer cannot be traced, or the compiler fails.
    """
    run, weights = traceable(model, index, call)
    positions = torch.zeros(call.hidden.shape[:2], dtype=torch.long)
    tensors = (call.hidden, *call.tensors, call.keys, call.values, positions, *weights)
    masks = [tuple(i for i, n in enumerate(leaf.shape) if n is None) for leaf in call.leaves if leaf.shape is not None]
    sizes = [(), *masks, (2,), (2,), ()]
    sizes += [()] * (len(tensors) - len(sizes))
    dynamic = torch.export.Dim.AUTO  # also between arguments: what is attended is at most the slab
    shapes = tuple(dict.fromkeys(which, dynamic) if which else None for which in sizes)
    n_tokens = call.hidden.shape[0] * call.hidden.shape[1]
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(run, tensors, strict=False, dynamic_shapes={"tensors": shapes})
            program = program.run_decompositions(_decompositions(n_tokens))
        except Exception as error:  # whatever tracing meets in somebody's module
            raise CannotCompileError.by(error, is_final=True) from error
        with tempfile.TemporaryDirectory(prefix="depthdial-") as folder:
            path = Path(folder) / "layer.pt2"
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_settings())
            except Exception as error:  # also the C++ compiler's, which may be short of memory or disk
                raise CannotCompileError.by(error, is_final=False) from error
            return path.read_bytes()


def traceable(model: Any, index: int, call: LayerCall) -> tuple[nn.Module, list[torch.Tensor]]:
    """Layer `index` as a module of tensors, which are its arguments as in the compiled function; and its weights."""
    host = quiet_view(model, [index], check=False)
    use_grouped_attention(host)
    layer = decoder_stack(host).layers[0]
    for module in layer.modules():
        if plain_forward(module):
            module.__dict__.pop("forward", None)  # packed weights, which could not be arguments
    weights = weights_of(layer)
    return _Run(layer, call, [name for name, _ in weights]), [tensor.detach() for _, tensor in weights]


def _settings() -> dict[str, Any]:
    """Fused multiply-adds, where this release of PyTorch can be asked for them: three tokens take 0.65 of the time."""
    from torch._inductor import config

    name = "enable_floating_point_contract_flag"
    return {f"cpp.{name}": "fast"} if isinstance(getattr(config.cpp, name, None), str) else {}


class _Run(nn.Module):
    """A layer whose weights and cache are arguments."""

    def __init__(self, layer: nn.Module, call: LayerCall, names: Sequence[str]) -> None:
        super().__init__()
        self._call, self._names = call, list(names)
        self.__dict__["_layer"] = layer  # no sub-module: its own weights are not to be part of the program

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        call = self._call
        n = len(call.tensors) + 1
        hidden, given, (keys, values, positions) = tensors[0], tensors[1:n], tensors[n : n + 3]
        weights = dict(zip(self._names, tensors[n + 3 :], strict=True))

        def layer(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.__dict__["_layer"], weights, args, kwargs)

        return called(call, hidden, given, keys, values, positions, layer)


def called(
    call: LayerCall,
    hidden: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    layer: Callable[..., Any],
) -> torch.Tensor:
    """Hidden states behind a layer that is called as transformers calls it, with slabs for a cache."""
    attended = next(
        tensor.shape[leaf.shape.index(None)]
        for leaf, tensor in zip((leaf for leaf in call.leaves if leaf.shape is not None), tensors, strict=True)
        if leaf.shape is not None and None in leaf.shape
    )
    torch._check(attended <= keys.shape[2])
    cache, left = SlabCache(keys, values, positions, attended), iter(tensors)
    filled = [cache if one.is_cache else next(left) if one.shape is not None else one.value for one in call.leaves]
    args, kwargs = pytree.tree_unflatten(filled, call.spec)
    return layer_states(layer(hidden, *args, **kwargs))


def difference(
    model: Any, index: int, call: LayerCall, run: Callable[[list[torch.Tensor]], list[torch.Tensor]]
) -> str | None:
    """How a compiled function differs from transformers' layer `index` on random inputs; None where it does not.

    In half precision, where every way of computing is off by its own rounding, it may be farther from the layer's result in
    single precision than the layer itself, by a few roundings.
    """
    layer = decoder_stack(model).layers[index]
    weights = [tensor for _, tensor in weights_of(layer)]
    precise, exact_weights = traceable(model, index, call)
    exact_weights = [_single(tensor) for tensor in exact_weights]
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for attended, window in _CHECKED_WINDOWS:
            hidden, tensors, slabs, positions = _inputs(call, attended, window, generator)
            theirs, exact = [slab.clone() for slab in slabs], [_single(slab.clone()) for slab in slabs]
            stock = called(call, hidden, tensors, theirs[0], theirs[1], positions, layer)
            found = run([hidden, *tensors, *slabs, positions, *weights])[0]
            is_half = hidden.dtype != torch.float32
            truth = stock
            if is_half:
                given = [_single(hidden), *map(_single, tensors), *exact, positions, *exact_weights]
                truth = precise(*given)
            names, mine, references = ("states", "keys", "values"), (found, *slabs), (truth, *(exact if is_half else theirs))
            for name, one, reference, other in zip(names, mine, references, (stock, *theirs), strict=True):
                off = largest_difference(one, reference)
                if not off <= _CLOSE[hidden.dtype] + 2 * largest_difference(other, reference):
                    return f"its {name} are off by {off:.1e} of the largest, with {attended} slots of {window}"
    return None


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _inputs(
    call: LayerCall, attended: int, window: int, generator: torch.Generator
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Random hidden states, the other tensors, slabs of random keys and values, and the slots of the tokens."""
    rows, tokens, _ = call.hidden.shape
    hidden = torch.randn(call.hidden.shape, generator=generator).to(call.hidden.dtype)
    positions = torch.randint(0, attended - tokens + 1, (rows, 1), generator=generator) + torch.arange(tokens)
    slabs = [
        torch.randn(*one.shape[:2], window, one.shape[3], generator=generator).to(one.dtype)
        for one in (call.keys, call.values)
    ]
    return hidden, [_example(one, attended, positions) for one in call.tensors], slabs, positions


def _example(like: torch.Tensor, attended: int, positions: torch.Tensor) -> torch.Tensor:
    """Another tensor that a layer may be called with: a mask of another window, else what transformers gave."""
    rows, tokens = positions.shape
    if like.dim() == 4 and like.shape[:3] == (rows, 1, tokens) and like.is_floating_point():
        hidden = torch.arange(attended) > positions[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, torch.finfo(like.dtype).min)
    return like


def _decompositions(n_tokens: int) -> dict[Any, Callable[..., Any]]:
    import torch._inductor.inductor_prims  # registers the barrier

    def placed(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if n_tokens < _BARRIER_TOKENS:
            return flat
        return torch.ops.prims.inductor_force_stride_order(flat.contiguous(), [x.shape[-1], 1])

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        flat = placed(x)
        if flat.shape[0] > n_tokens:  # something that is not done once for each token
            out = torch.ops.aten.mm(flat, weight.t())
        else:
            n = flat.shape[0]
            # Three sums at once take longer than four.
            flat = torch.nn.functional.pad(flat, (0, 0, 0, 1)) if n == 3 else flat
            out = torch.stack([(weight * one).sum(-1) for one in flat.unbind()])[:n]
        out = out if bias is None else out + bias
        return out.reshape(*x.shape[:-1], weight.shape[0])

    return {torch.ops.aten.linear.default: linear}


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's warnings and log about its own compiling are not for the user."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
