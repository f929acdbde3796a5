"""Making compiled layers ahead of requests: what `depthdial warmup` does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from depthdial.engine import compiled, compiling
from depthdial.engine.batch import why_not_in_rows
from depthdial.engine.compiling import CannotCompileError
from depthdial.engine.layer_kinds import layer_kind
from depthdial.errors import InputError
from depthdial.files import write_atomically
from depthdial.hf.architectures import count_layers, decoder_stack
from depthdial.progress import progress_bar
from depthdial.views.snapshot import as_is


@dataclass(frozen=True)
class WarmedUp:
    """What `warm_up` did.

    Attributes:
        n_compiled, n_found: functions that were compiled, and that were on disk.
        refused: for each kind of layers that runs uncompiled, why.
        seconds: how long it took.
        folder: where they are.
        n_threads: how many a process has that finds them: `torch.get_num_threads()`.
    """

    n_compiled: int
    n_found: int
    refused: tuple[str, ...]
    seconds: float
    folder: Path
    n_threads: int


def warm_up(model: Any, shapes: Sequence[tuple[int, int]] = compiled.SHAPES, *, progress: bool = False) -> WarmedUp:
    """Compile the decoder layers of a model for small steps, where that was not done before.

    Each function is written as it is ready, so a stopped call goes on where it was. Each is compared with transformers' own
    layer first, for every layer of its kind: one that differs is not used, which is remembered.

    Args:
        model: a view of all its layers in evaluation mode, such as a session has.
        shapes: (rows, tokens) of a step, of at most 4 tokens in all.

    Raises:
        InputError: without a C++ compiler, for a model that is not on a CPU, and for other shapes.
    """
    started = time.monotonic()
    _check(model, shapes)
    compiling.require_compiler()
    kinds: dict[str | None, list[int]] = {}
    for index, layer in enumerate(decoder_stack(model).layers):
        kinds.setdefault(layer_kind(layer), []).append(index)
    unknown = kinds.pop(None, [])
    refused = [f"{_layers(unknown)}: hooks, quantized weights or another dtype than fp32 and bf16"] if unknown else []
    if kinds and (reason := why_not_in_rows(model)) is not None:  # then no step would look for them
        refused, kinds = [f"{_layers(range(count_layers(model)))}: {reason}"], {}
    n_compiled = n_found = 0
    with progress_bar("compiling", len(kinds) * len(shapes), show=progress) as advance, as_is(torch.device("cpu")):
        for kind, indices in kinds.items():
            reasons: dict[str, None] = {}
            for rows, tokens in shapes:
                stem = compiled.stem_of(str(kind), rows, tokens)
                told = compiled.told_of(stem)
                is_there = told is not None and (told["refused"] is not None or compiled.is_whole(stem, told))
                reason = told["refused"] if told is not None and is_there else _make(model, indices, stem, rows, tokens)
                n_found += is_there and reason is None
                n_compiled += not is_there and reason is None
                reasons |= {} if reason is None else {reason: None}
                advance()
            refused += [f"{_layers(indices)}: {reason}" for reason in reasons]
    passed_sec = time.monotonic() - started
    return WarmedUp(n_compiled, n_found, tuple(refused), passed_sec, compiled.folder(), torch.get_num_threads())


def _make(model: Any, indices: Sequence[int], stem: str, rows: int, tokens: int) -> str | None:
    """Put a function of the layers at `indices`, which are of one kind, on disk; why there is none, or None."""
    about: dict[str, Any] = {"refused": None, "sha256": None, "rows": rows, "tokens": tokens}
    path = compiled.folder() / f"{stem}.pt2"
    try:
        call = compiling.layer_call(model, indices[0], rows, tokens)
        code = compiling.compile_layer(model, indices[0], call)
        write_atomically(path, lambda part: part.write_bytes(code))
        run = compiled.load(path)
        for index in indices:
            off = compiling.difference(model, index, call, run)
            if off is not None:
                raise CannotCompileError(f"compiled, {off} (layer {index})")
        about |= {**compiling.describe(call), "sha256": hashlib.sha256(code).hexdigest()}
    except CannotCompileError as error:
        path.unlink(missing_ok=True)
        if not error.is_final:
            return str(error)
        about["refused"] = str(error)
    compiled.write_about(stem, about)
    return about["refused"]


def _check(model: Any, shapes: Sequence[tuple[int, int]]) -> None:
    for rows, tokens in shapes:
        if rows < 1 or tokens < 1 or rows * tokens > compiled.MOST_TOKENS:
            raise InputError(
                f"A step of {rows} rows of {tokens} tokens cannot be compiled: at most {compiled.MOST_TOKENS} tokens in all."
            )
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise InputError(f"Layers are compiled for a CPU, and this model is on {device}: load it with device='cpu'.")


def _layers(indices: Sequence[int]) -> str:
    return f"layer{'s' * (len(indices) > 1)} {', '.join(map(str, indices))}"
