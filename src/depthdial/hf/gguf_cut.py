"""A GGUF file with some of its layers: every tensor copied as it is, layers numbered anew, per-layer metadata cut.

llama.cpp's own `llama-quantize --prune-layers` leaves arrays with one entry a layer as long as they were, and the file does
not load (llama.cpp issue 27976).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.gguf_layers import PATTERN_KEY, WINDOW_KEY, cut_array, sliding_layers, sliding_pattern, write_file
from depthdial.hf.loaded import refusing

# Architectures whose layers llama.cpp builds without looking at their place, but for what the metadata says of it.
CUT_ARCHITECTURES = ("gemma", "gemma3", "llama", "qwen2", "qwen3")
_LAYER = re.compile(r"blk\.(\d+)\.(.*)")


def cut_gguf(source: Path, target: Path, layers: Sequence[int], n_layers: int) -> None:
    """Write `source`, a GGUF file of `n_layers` layers, as `target` with only `layers`.

    Raises:
        InputError: if the file is damaged, has another number of layers, or is of an architecture whose layers depend on
            their place.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    with refusing(str(source), "cannot be read (is it damaged?)"):
        reader = GGUFReader(source)
        arch = reader.fields["general.architecture"].contents()
        n_stated = reader.fields[f"{arch}.block_count"].contents()
    _refuse(source, arch, reader.fields, n_stated, n_layers)
    writer = GGUFWriter(target, arch, endianess=reader.endianess)
    writer.data_alignment = reader.alignment
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or not field.data:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = cut_array(field.name.removeprefix(f"{arch}."), field.contents(), layers, n_layers)
        if field.name != f"{arch}.{PATTERN_KEY}" or arch != "gemma3":
            writer.add_key_value(field.name, value, kind, sub_type=inner)
    if arch == "gemma3" and f"{arch}.{WINDOW_KEY}" in reader.fields:
        stated = reader.fields.get(f"{arch}.{PATTERN_KEY}")
        whole = sliding_layers(None if stated is None else stated.contents(), n_layers)
        writer.add_sliding_window_pattern(sliding_pattern([whole[i] for i in layers]))
    tensors = [(name, tensor) for tensor in reader.tensors if (name := _renumbered(tensor.name, layers)) is not None]
    for name, tensor in tensors:
        writer.add_tensor_info(name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    write_file(writer, (tensor.data for _, tensor in tensors))


def _renumbered(name: str, layers: Sequence[int]) -> str | None:
    """The name of a tensor in the cut file; None for one of a layer that is left out."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    return f"blk.{layers.index(int(match[1]))}.{match[2]}" if int(match[1]) in layers else None


def _refuse(source: Path, arch: str, fields: Any, n_stated: int, n_layers: int) -> None:
    if arch not in CUT_ARCHITECTURES:
        raise InputError(
            f"{source} is of the architecture {arch!r}, whose layers may depend on their place: files of "
            f"{', '.join(CUT_ARCHITECTURES[:-1])} and {CUT_ARCHITECTURES[-1]} can be cut; export others with --to hf."
        )
    if n_stated != n_layers or f"{arch}.nextn_predict_layers" in fields:
        raise InputError(f"{source} has {n_stated} layers and the model {n_layers}: load the model from this file.")
