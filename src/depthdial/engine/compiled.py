"""Compiled decoder layers on disk: found and called in a step, made by `engine.warmup` alone.

A function is for layers of one kind (see `layer_kinds`) and for one number of rows and tokens; its weights are arguments, so
layers, routes and models of that kind share it, and every call reads the model's own parameters. Nothing is ever compiled
in a request: what is not on disk, or damaged there, or called in another way than it was compiled for, runs uncompiled.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depthdial.engine.layer_kinds import layer_kind, surroundings, weights_of
from depthdial.errors import InputError
from depthdial.files import Document
from depthdial.hf.architectures import decoder_stack
from depthdial.hf.builtin import cache_root
from depthdial.provenance import digest

# (rows, tokens) of a step that are compiled for: one token of up to four rows, drafts of up to four tokens.
SHAPES = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 3), (1, 4))
MOST_TOKENS = 4
FORMAT = Document("depthdial-compiled-layer", 1, "compiled layer", "run depthdial warmup again")
_OTHER = -1
Run = Callable[[list[torch.Tensor]], list[torch.Tensor]]
_written = 0  # how often this process has put something on disk
# By the names of their files; a function stays loaded, as modules do.
_loaded: dict[str, Program] = {}
_log = logging.getLogger("depthdial")


@dataclass(frozen=True)
class Leaf:
    """One of the values that a layer is called with beside hidden states and cache.

    Attributes:
        path: where it lies in (args, kwargs).
        shape: of a tensor, with None for the attended window; None for another value.
        dtype: of a tensor, such as `torch.float32`.
        value: of what is no tensor.
        is_cache: whether it is the KV cache, which the slabs replace.
    """

    path: tuple[str | int, ...]
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    value: bool | int | float | str | None = None
    is_cache: bool = False

    def window(self, given: Any) -> int | None:
        """The attended window that a value has, or None if it has none; `_OTHER` if it is not what was compiled for."""
        if self.shape is None:
            return None if type(given) is type(self.value) and given == self.value else _OTHER
        if not isinstance(given, torch.Tensor) or str(given.dtype) != self.dtype or given.dim() != len(self.shape):
            return _OTHER
        pairs = list(zip(self.shape, given.shape, strict=True))
        if any(mine is not None and mine != n for mine, n in pairs):
            return _OTHER
        return next((n for mine, n in pairs if mine is None), None)


class Program:
    """A loaded function of one kind of layers, and how transformers calls them."""

    def __init__(self, run: Run, told: Mapping[str, Any]) -> None:
        leaves = [_leaf(one) for one in told["leaves"]]
        self.run = run
        self._checked = [leaf for leaf in leaves if not leaf.is_cache]
        self._paths = [leaf.path for leaf in self._checked]
        self._n_args, self._n_kwargs = told["n_args"], told["n_kwargs"]
        self._hidden, self._dtype = tuple(told["hidden"]), told["dtype"]
        self._slabs = tuple(told["keys"]), tuple(told["values"])
        self._seen: tuple[list[Any], list[torch.Tensor], int] | None = None

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[torch.Tensor], int] | None:
        """The tensors among arguments, and how many slots are attended; None if they are not what was compiled for."""
        given, seen = (args, kwargs), self._seen
        if len(args) != self._n_args or len(kwargs) != self._n_kwargs:  # those that are looked up, and the cache
            return None
        try:
            now = [_at(given, path) for path in self._paths]
        except (KeyError, IndexError, TypeError):
            return None
        # The layers of a pass are called with the very same values, which are looked at once.
        if seen is not None and all(map(operator.is_, now, seen[0])):
            return seen[1], seen[2]
        windows = {leaf.window(value) for leaf, value in zip(self._checked, now, strict=True)}
        attended = next((n for n in windows if n is not None), _OTHER)
        if len(windows - {None}) != 1 or attended == _OTHER:
            return None
        tensors = [one.contiguous() for one in now if isinstance(one, torch.Tensor)]
        self._seen = now, tensors, attended
        return tensors, attended

    def takes(self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attended: int) -> bool:
        """Whether hidden states and slabs are of the shape and the kind that was compiled for."""
        if hidden.shape != self._hidden or str(hidden.dtype) != self._dtype or keys.shape[2] < attended:
            return False
        for slab, (rows, heads, width) in zip((keys, values), self._slabs, strict=True):
            shape = slab.shape
            is_like = shape[0] == rows and shape[1] == heads and shape[3] == width and shape[2] == keys.shape[2]
            if not is_like or slab.dtype != hidden.dtype or not slab.is_contiguous():
                return False
        return True


class CompiledLayer:
    """A compiled function with the weights of one layer, which are read where they lie."""

    def __init__(self, program: Program, layer: nn.Module) -> None:
        self._program = program
        self._weights = [tensor for _, tensor in weights_of(layer)]

    def __call__(
        self,
        hidden: torch.Tensor,
        kwargs: Mapping[str, Any],
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        args: Sequence[Any] = (),
    ) -> torch.Tensor | None:
        """Hidden states behind the layer, (rows, tokens, width); keys and values of the tokens are written to the slabs.

        Args:
            hidden: (rows, tokens, width).
            kwargs, args: what transformers calls the layer with beside them; the KV cache among them is not looked at. The
                width of the mask says how many slots are attended, from the first on.
            keys, values: (rows, kv_heads, window, width of a head), each in one piece.
            positions: (rows, tokens), the slots of the tokens.

        Returns:
            None, and nothing is written, where the call is not the one that was compiled: then the layer itself is to run.
        """
        found = self._program.tensors(args, kwargs)
        if found is None or not self._program.takes(hidden, keys, values, found[1]):
            return None
        inputs = [hidden.contiguous(), *found[0], keys, values, positions.contiguous(), *self._weights]
        return self._program.run(inputs)[0]


class CompiledLayers:
    """The compiled layers of a model that are on disk.

    Args:
        model: a view of all its layers in evaluation mode, such as a session has.

    Example:
        >>> from depthdial.engine.compiled import CompiledLayers
        >>> layers = CompiledLayers(Session.of(model, tokenizer).model)
        >>> layers.find(0, rows=1, tokens=1) is None  # `depthdial warmup` has not run
        True
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._forget()

    def _forget(self) -> None:
        self._kinds: list[str | None] | None = None
        self._found: dict[tuple[int, int, int], CompiledLayer | None] = {}
        self._programs: dict[tuple[str, int, int], Program | None] = {}
        self._as_of = _written

    @classmethod
    def of(cls, model: Any) -> CompiledLayers:
        """The same object for a model at every call."""
        if model not in _known:
            _known[model] = cls(model)
        return _known[model]

    def find(self, layer: int, rows: int, tokens: int) -> CompiledLayer | None:
        """The compiled function of a layer for so many rows and tokens; None where the layer itself is to run.

        The disk is asked once for each; what another process makes later is found by the next session.
        """
        if rows * tokens > MOST_TOKENS:
            return None
        if self._as_of != _written:
            self._forget()
        key = (layer, rows, tokens)
        if key not in self._found:
            self._found[key] = self._find(*key)
        return self._found[key]

    def _find(self, layer: int, rows: int, tokens: int) -> CompiledLayer | None:
        model = self._model()
        layers = [] if model is None else decoder_stack(model).layers
        if self._kinds is None:  # computed only where there is something to find
            self._kinds = [layer_kind(one) for one in layers] if any(folder().glob("*.json")) else []
        kind = self._kinds[layer] if self._kinds else None
        if kind is None:
            return None
        key = (kind, rows, tokens)
        if key not in self._programs:  # of all layers of the kind
            self._programs[key] = program_of(stem_of(*key))
        program = self._programs[key]
        return None if program is None else CompiledLayer(program, layers[layer])


_known: weakref.WeakKeyDictionary[Any, CompiledLayers] = weakref.WeakKeyDictionary()


def folder() -> Path:
    """Where compiled layers are kept: in the cache, see `DEPTHDIAL_CACHE`."""
    return cache_root() / "compiled"


def stem_of(kind: str, rows: int, tokens: int) -> str:
    """The name of a function's files. How many threads share its loops is compiled in."""
    about = {"kind": kind, "rows": rows, "tokens": tokens, "threads": torch.get_num_threads()}
    return digest({**surroundings(), **about})


def told_of(stem: str) -> dict[str, Any] | None:
    try:
        return FORMAT.read(folder() / f"{stem}.json", lambda fields: {**fields, "refused": fields["refused"]})
    except InputError:
        return None


def is_whole(stem: str, told: Mapping[str, Any]) -> bool:
    try:
        return hashlib.sha256((folder() / f"{stem}.pt2").read_bytes()).hexdigest() == told["sha256"]
    except OSError:
        return False


def write_about(stem: str, about: Mapping[str, Any]) -> None:
    """Put down what is known of a function, the last of its files to be written."""
    global _written
    FORMAT.write(folder() / f"{stem}.json", about)
    _written += 1


def program_of(stem: str) -> Program | None:
    """A function that is on disk and whole, loaded once; None without one."""
    if stem not in _loaded:
        told = told_of(stem)
        if told is None or told["refused"] is not None or not is_whole(stem, told):
            return None
        try:
            _loaded[stem] = Program(load(folder() / f"{stem}.pt2"), told)
        except (RuntimeError, KeyError, TypeError) as error:
            _log.warning("The compiled layer %s cannot be loaded, so it runs uncompiled (%s).", stem, error)
            return None
    return _loaded[stem]


def load(path: Path) -> Run:
    # Not torch._inductor.aoti_load_package, for which the whole compiler is imported: that takes seconds.
    bindings: Any = torch._C
    return bindings._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).run


def _leaf(fields: Mapping[str, Any]) -> Leaf:
    shape = fields["shape"]
    return Leaf(**{**fields, "path": tuple(fields["path"]), "shape": None if shape is None else tuple(shape)})


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value
