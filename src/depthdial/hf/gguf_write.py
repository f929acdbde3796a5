"""A model as a GGUF file for llama.cpp: Llama, Mistral, Qwen2, Qwen3 and Gemma 3.

Names of tensors are gguf-py's own mapping. What llama.cpp expects otherwise than transformers keeps it, after llama.cpp's
`convert_hf_to_gguf.py`: rows of Llama's queries and keys are interleaved, and Gemma's norms are stored with their 1 added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthdial.errors import InputError
from depthdial.hf.architectures import unwrap
from depthdial.hf.facts import ModelFacts, text_config
from depthdial.hf.gguf_layers import sliding_pattern, write_file
from depthdial.hf.gguf_rope import TENSOR, llama3_factors
from depthdial.hf.gguf_vocabulary import add_vocabulary
from depthdial.hf.weights import state_tensors, stored_tensors

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
_ELSEWHERE = "export with --to hf and convert that folder with llama.cpp's convert_hf_to_gguf.py"
_MOST_F16 = 65504.0


@dataclass(frozen=True)
class _Shape:
    """How llama.cpp keeps an architecture of transformers.

    Attributes:
        arch: its name there.
        interleaves: whether rows of queries and keys lie pair by pair, and not half by half.
        norm_offset: added to the weights of norms.
        has_windows: whether it knows layers with sliding windows.
        activation: of its feed-forward layers.
    """

    arch: str
    interleaves: bool = False
    norm_offset: float = 0.0
    has_windows: bool = False
    activation: str = "silu"


_SHAPES = {
    "llama": _Shape("llama", interleaves=True),
    "mistral": _Shape("llama", interleaves=True),
    "qwen2": _Shape("qwen2"),
    "qwen3": _Shape("qwen3"),
    "gemma3_text": _Shape("gemma3", norm_offset=1.0, has_windows=True, activation="gelu_pytorch_tanh"),
}


def write_gguf(model: Any, tokenizer: Any, target: Path, *, file_type: str = "f16", name: str = "") -> None:
    """Write a model and its tokenizer as one GGUF file.

    Args:
        file_type: of the matrices, one of `GGUF_TYPES`; vectors are fp32. Matrices whose rows Q8_0 does not fit are fp16.
        name: what the file calls the model.

    Raises:
        InputError: for a model or a tokenizer that the file cannot describe as it is.
    """
    from gguf import GGUFWriter

    shape = _shape_of(model)
    tensors = list(_tensors(model, shape, file_type))
    writer = GGUFWriter(target, shape.arch)
    writer.add_type("model")
    writer.add_name(name or ModelFacts.of(model).name)
    writer.add_file_type(_file_type(file_type))
    writer.add_quantization_version(2)
    _add_sizes(writer, model, shape)
    add_vocabulary(writer, tokenizer, ModelFacts.of(model).vocabulary)
    for one in tensors:
        writer.add_tensor_info(one.name, *one.layout())
    write_file(writer, (one.data() for one in tensors))


def check_gguf_model(model: Any) -> None:
    """InputError for a model that `write_gguf` does not write, before anything is written."""
    _shape_of(model)


def _shape_of(model: Any) -> _Shape:
    config, facts = text_config(unwrap(model)), ModelFacts.of(model)
    shape = _SHAPES.get(config.model_type)
    if shape is None or type(model.config).model_type != config.model_type:
        known = ", ".join(sorted(_SHAPES))
        raise InputError(
            f"{facts.name} is of the kind {config.model_type}, and GGUF files are written of {known}: {_ELSEWHERE}."
        )
    if facts.rope - ({"default", "llama3"} if shape.arch == "llama" else {"default"}) or not facts.rope:
        raise InputError(
            f"{facts.name} has rotary frequencies of the kind {', '.join(sorted(facts.rope)) or 'none'}, which are not "
            f"written to GGUF files here: {_ELSEWHERE}."
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != shape.activation or getattr(config, "final_logit_softcapping", None) is not None:
        raise InputError(
            f"{facts.name} computes otherwise than llama.cpp's {shape.arch} ({activation}, or capped logits): {_ELSEWHERE}."
        )
    if any(facts.windows) and not shape.has_windows:
        raise InputError(f"{facts.name} has sliding windows, which llama.cpp has not for {shape.arch}: {_ELSEWHERE}.")
    if shape.arch == "gemma3" and getattr(config, "query_pre_attn_scalar", None) != config.head_dim:
        raise InputError(
            f"{facts.name} scales attention by {config.query_pre_attn_scalar} and not by its head size, which llama.cpp "
            "tells from the number of layers: export with --to hf."
        )
    if any(len(stored_tensors(tensor)) > 1 or not tensor.is_floating_point() for _, tensor in state_tensors(unwrap(model))):
        raise InputError(
            f"{facts.name} is quantised, and GGUF files are written of floating weights: load it in a float dtype."
        )
    return shape


def _add_sizes(writer: Any, model: Any, shape: _Shape) -> None:
    config, facts = text_config(unwrap(model)), ModelFacts.of(model)
    heads = config.num_attention_heads
    head_dim = _head_dim(config)
    rope = config.rope_parameters
    writer.add_vocab_size(facts.vocabulary)
    writer.add_context_length(facts.context)
    writer.add_embedding_length(facts.width)
    writer.add_block_count(facts.n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"] if shape.has_windows else rope["rope_theta"])
    if shape.has_windows:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(sliding_pattern(_sliding(facts)))


def has_listed_windows(model: Any) -> bool:
    """Whether a file of the model lists its layers with sliding windows, which older versions of llama.cpp ignore."""
    facts = ModelFacts.of(model)
    return any(facts.windows) and isinstance(sliding_pattern(_sliding(facts)), list)


def _sliding(facts: ModelFacts) -> list[bool]:
    return [kind == "sliding_attention" for kind in facts.kinds]


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor on its way into the file; its numbers are made when they are asked for."""

    name: str
    weight: torch.Tensor
    kind: Any
    n_interleaved: int = 0
    offset: float = 0.0

    def layout(self) -> tuple[Any, ...]:
        """Shape in bytes or numbers, NumPy type, size in bytes and type, as gguf-py asks for them."""
        from gguf import GGMLQuantizationType as Kind
        from gguf.quants import quant_shape_to_byte_shape

        shape = tuple(self.weight.shape)
        if self.kind in (Kind.F32, Kind.F16):
            dtype: Any = np.float32 if self.kind == Kind.F32 else np.float16
            return shape, np.dtype(dtype), self.weight.numel() * np.dtype(dtype).itemsize, self.kind
        in_bytes = quant_shape_to_byte_shape(shape, self.kind)
        return in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), self.kind

    def data(self) -> np.ndarray:
        from gguf import GGMLQuantizationType as Kind
        from gguf import quants

        array = self.weight.detach().to("cpu", torch.float32).contiguous().numpy()
        if self.offset:
            array = array + np.float32(self.offset)
        if self.n_interleaved:
            array = _interleaved(array, self.n_interleaved)
        if self.kind == Kind.F16 and array.size and float(np.abs(array).max()) > _MOST_F16:
            raise InputError(f"{self.name} holds numbers beyond those of f16: export with --gguf-type bf16 or f32.")
        if self.kind in (Kind.F32, Kind.F16):
            return np.ascontiguousarray(array, np.float32 if self.kind == Kind.F32 else np.float16)
        return quants.quantize(array, self.kind)


def _tensors(model: Any, shape: _Shape, file_type: str) -> Iterator[_Tensor]:
    import gguf

    base: Any = unwrap(model)
    config = text_config(base)
    if config.rope_parameters.get("rope_type") == "llama3":
        yield _Tensor(
            TENSOR, torch.tensor(llama3_factors(config.rope_parameters, _head_dim(config))), gguf.GGMLQuantizationType.F32
        )
    names = gguf.get_tensor_name_map(_arch(shape.arch), config.num_hidden_layers)
    wanted = gguf.GGMLQuantizationType[file_type.upper()]
    embedding = base.get_input_embeddings().weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads or config.num_attention_heads}
    for name, weight in base.state_dict().items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"The weight {name} has no name in GGUF files of {shape.arch}: {_ELSEWHERE}.")
        if found == "output.weight" and weight.data_ptr() == embedding.data_ptr():
            continue  # llama.cpp takes the embedding where there is no head
        part = found.split(".")[-2]
        is_norm = part.endswith("norm")
        yield _Tensor(
            found,
            weight,
            _kind(weight, wanted),
            heads.get(part, 0) if shape.interleaves else 0,
            shape.norm_offset if is_norm else 0.0,
        )


def _kind(weight: torch.Tensor, wanted: Any) -> Any:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if weight.ndim < 2:
        return GGMLQuantizationType.F32
    return wanted if weight.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _arch(name: str) -> Any:
    from gguf import MODEL_ARCH_NAMES

    return next(arch for arch, known in MODEL_ARCH_NAMES.items() if known == name)


def _file_type(file_type: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType.ALL_F32 if file_type == "f32" else LlamaFileType[f"MOSTLY_{file_type.upper()}"])


def _interleaved(array: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (heads x halves x half) in the order (heads x half x halves)."""
    halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
