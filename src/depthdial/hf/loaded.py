"""Checks of a loaded model against its checkpoint: every weight present, none left out, no NaN.

transformers fills missing weights in at random and drops those that it has no place for, both with a logged warning at
most. Here each is one sentence.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.errors import CheckpointWarning, InputError, TokenizerWarning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What wrappers put before every name in a state dict: torch.compile, DataParallel and DDP, PEFT, Lightning
_WRAPPER = re.compile(r"(_orig_mod\.|module\.|base_model\.model\.|_fsdp_wrapped_module\.)+")
_QUANTISED = re.compile(r".*\.(weight_scale(_inv)?|weight_packed|qweight|qzeros|absmax|quant_state.*|biases|scales)")


def wrapper_prefix(folder: Path, files: Iterable[str]) -> str | None:
    """What comes before every weight's name because a wrapper was saved and not the model, as `_orig_mod.`; else None.

    Reads the headers of safetensors files, a few kilobytes each.
    """
    names = [name for file in files for name in _names_in(folder / file)]
    match = _WRAPPER.match(names[0]) if names else None
    return match[0] if match and all(name.startswith(match[0]) for name in names) else None


def _names_in(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError):  # damaged: the loader says so
        return []


def check_complete(loaded: Any, label: str) -> PreTrainedModel:
    """The model of a (model, loading report) pair from transformers, refused unless the checkpoint was whole and right."""
    model, report = loaded
    names = {name for name, _ in model.named_parameters()}
    if getattr(model.config.get_text_config(), "num_hidden_layers", None) == 0:
        raise InputError(f"{label} names 0 layers in its config.json: correct the config's number of layers.")
    missing = sorted(set(report["missing_keys"]) & names)
    unexpected = sorted(report["unexpected_keys"])
    scales = [name for name in unexpected if _QUANTISED.fullmatch(name)]
    if scales:
        raise InputError(
            f"{label} holds quantised weights ({scales[0]}, ..) and its config.json has no quantization_config for them:"
            " copy config.json again, or load the checkpoint that was quantised."
        )
    _check_layers(names, missing, unexpected, model.config, label)
    if missing:
        raise InputError(
            f"{label} lacks {len(missing)} of the weights of {type(model).__name__} ({missing[0]}, ..):"
            " it is not a whole causal language model's checkpoint."
        )
    _check_numbers(model, label)
    own = {f"{name}.{kind}" for name, one in model.named_modules() if one._parameters for kind in ("weight", "bias")}
    dropped = [name for name in unexpected if name in own]
    if dropped:
        warnings.warn(
            f"{label} holds {len(dropped)} weights that its config.json has no place for ({dropped[0]}, ..): they are left"
            " out, so check config.json",
            CheckpointWarning,
            stacklevel=4,
        )
    return model


def _check_layers(
    names: Collection[str], missing: Collection[str], unexpected: Collection[str], config: Any, label: str
) -> None:
    """Refuse a config that names another number of layers than the weights hold."""
    for stack in sorted({match[1] for name in names if (match := re.match(r"(.*?\.)\d+\.", name))}):
        place = re.compile(re.escape(stack) + r"(\d+)\.")
        ours, others, lacking = (
            {int(match[1]) for name in some if (match := place.match(name))} for some in (names, unexpected, missing)
        )
        extra = getattr(config.get_text_config(), "num_nextn_predict_layers", None) or 0  # of multi-token prediction
        whole = {i for i in lacking if all(name in missing for name in names if name.startswith(f"{stack}{i}."))}
        held = len(ours)
        if len(others - ours) > extra:
            held += len(others - ours)
        elif whole == lacking and whole == set(range(held - len(whole), held)) and len(whole) < held:
            held -= len(whole)
        if held != len(ours):
            raise InputError(
                f"{label} holds {held} layers and its config.json names {len(ours)}: correct the config's number of layers"
                f"{' (a route can leave layers out)' if held > len(ours) else ''}."
            )


def _check_numbers(model: PreTrainedModel, label: str) -> None:
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or hasattr(weight, "__tensor_flatten__"):
            continue
        if weight.dtype.itemsize > 1 and bool(weight.detach().sum().isnan()) and bool(weight.detach().isnan().any()):
            raise InputError(f"{label} has a weight that holds NaN ({name}): its training failed, or the file is damaged.")


def prepare_tokenizer(tokenizer: Any, model: PreTrainedModel, label: str) -> PreTrainedTokenizerBase:
    """The tokenizer with padding on the left by a token that the model has an embedding for; the model's settings alike."""
    if len(tokenizer) < 2:  # without its files some tokenizer classes come out empty and encode nothing
        raise InputError(f"{label} has no tokenizer files: save the tokenizer beside the model.")
    tokenizer.padding_side = "left"
    n_embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None) or len(tokenizer)
    beyond = sorted((i, word) for word, i in tokenizer.get_vocab().items() if i >= n_embeddings)
    pads_beyond = tokenizer.pad_token is not None and tokenizer.pad_token_id >= n_embeddings
    if beyond:
        remedy = f": {tokenizer.pad_token!r} is replaced as the pad token" if pads_beyond else ""
        warnings.warn(
            f"{label} has {n_embeddings} embeddings and a tokenizer with {beyond[-1][0] + 1} tokens{remedy}: text with"
            f" {beyond[0][1]!r} cannot be run" + (f" (nor with {len(beyond) - 1} more)" if len(beyond) > 1 else ""),
            TokenizerWarning,
            stacklevel=4,
        )
    if tokenizer.pad_token is None or pads_beyond:
        end = tokenizer.eos_token if (tokenizer.eos_token_id or 0) < n_embeddings else None
        tokenizer.pad_token = end or tokenizer.convert_ids_to_tokens(0)
    settings = model.generation_config
    if settings is not None and not 0 <= (settings.pad_token_id if settings.pad_token_id is not None else -1) < n_embeddings:
        settings.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def check_fits(adapter: Path, model: PreTrainedModel) -> None:
    """Refuse an adapter with weights for modules that the model lacks: PEFT would leave them out without a word."""
    modules = {name for name, _ in model.named_modules()}
    for name in sorted(_names_in(adapter / "adapter_model.safetensors")):
        target, found, _ = name.removeprefix("base_model.model.").partition(".lora_")
        if found and target not in modules:
            raise InputError(
                f"The adapter {adapter} does not fit the model: the model has no {target}; load the adapter's own base."
            )


@contextmanager
def refusing(label: str, verdict: str) -> Iterator[None]:
    """Turn whatever transformers, PEFT, safetensors or gguf raise over a bad checkpoint into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(needs_trust(label)) from error
        raise InputError(f"{label} {verdict}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if type(error).__name__ == "UnpicklingError":
        return "it holds more than tensors, and Depthdial runs no pickled code"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says"
    if isinstance(error, KeyError):
        return f"one of its JSON files lacks the key {text}"
    if "Found missing adapter keys" in text:
        first = re.search(r"\['([^']+)'", text)
        return f"it lacks some of its weights ({first[1] if first else text[:80]}, ..); save it again"
    if "Couldn't instantiate the backend tokenizer" in text:
        remedy = "save one beside the model, or for a tokenizer.model install sentencepiece and protobuf"
        return f"it has no tokenizer.json; {remedy}"
    if unknown := re.search(r"model type `([^`]+)` but Transformers does not recognize", text):
        known_to = f"transformers {version('transformers')} does not know the model type {unknown[1]!r}"
        return f"{known_to}; correct config.json or upgrade transformers"
    lines = [line.strip().rstrip(".:") for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"[.!?]\s+(?=[A-Z])", "; ", "; ".join(lines))[:600].rstrip(".;: ") or type(error).__name__


def needs_trust(label: str) -> str:
    return f"{label} needs Python code of its own: pass trust_remote_code=True (--trust-remote-code) if you trust it"


def check_config_file(file: Path, label: str) -> None:
    """Refuse a config.json that is not JSON, with the place where it breaks."""
    try:
        text = file.read_bytes().decode("utf-8")
        config = json.loads(text)
    except ValueError as error:
        reason = "it begins with a byte-order mark" if "BOM" in str(error) else str(error)
        raise InputError(
            f"{label} has a configuration that cannot be read: config.json is not JSON ({reason}); write it again."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{label} has a configuration that cannot be read: config.json is not a JSON object.")
    quantised = config.get("quantization_config") or config.get("quantization")
    if isinstance(quantised, dict) and "quant_method" not in quantised and "quant_type" not in quantised:
        raise InputError(
            f"{label} is quantised in a way that its config.json does not name with a quant_method (MLX does so), and"
            " transformers does not read: load the checkpoint that was quantised."
        )
