"""Files of a checkpoint, in a local folder and on the Hugging Face Hub, identified before any is loaded.

Everything that `load` refuses about a checkpoint's files is refused here, by name: a checkpoint that holds only pickled
weights, an adapter where a model is meant, a missing shard, an id that the Hub does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from depthdial.errors import InputError

# Long enough for a slow line; transformers' own look-ups retry for minutes when the Hub is out of reach.
HUB_TIMEOUT_SEC = 10.0

_STEM = {"safetensors": "model", "bin": "pytorch_model"}
# Weights that the checkpoint's publisher also offers in another precision: model.fp16.safetensors, or its index
_VARIANT = re.compile(r"model\.([\w-]+)\.safetensors|model\.safetensors\.index\.([\w-]+)\.json")
_NO_SHARD = re.compile(r"consolidated.*|adapter_model.*|model\..*|.*/model\.safetensors")
_LFS_POINTER = b"version https://git-lfs"
# What a tokenizer or a config may need beside the weights; code (.py) only where it may run.
_SMALL_FILE = re.compile(r"[^/]+\.(json|txt|model|jinja|tiktoken)|additional_chat_templates/[^/]+\.jinja")

WeightFormat = Literal["safetensors", "bin"]


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one checkpoint: their format, and the names of the file or the shards with their index.

    `variant` is the precision in their names (`model.fp16.safetensors`), where there are no others.
    """

    format: WeightFormat
    names: tuple[str, ...]
    variant: str | None = None

    @property
    def index(self) -> str | None:
        """The name of the index that lists the shards; None for weights in one file."""
        return next((name for name in self.names if name.endswith(".json")), None)

    def files(self, folder: Path) -> list[str]:
        """The weight files of a folder that was checked, without the index: the shards that the index names."""
        return list(self.names) if self.index is None else _shards(folder / self.index, self.format)


def choose_weights(names: Collection[str], label: str, *, allow_bin: bool) -> WeightFiles:
    """The weights to load among a checkpoint's file names: safetensors, or pickled ones where they are allowed."""
    safe, pickled = _weights_of("safetensors", names), _weights_of("bin", names)
    if safe is not None:
        return safe
    if pickled is not None:
        if allow_bin:
            return pickled
        raise InputError(
            f"{label} has only pickled weights ({pickled.names[0]}): pass allow_bin=True (--allow-bin) to load them"
            " with PyTorch's weights_only reader, which runs no code."
        )
    variant = _variant_of(names)
    if variant is not None:
        return variant
    if "adapter_config.json" in names:
        raise InputError(f"{label} is a PEFT adapter and not a model: load its base model with adapter= set to it.")
    if any(name.endswith(".gguf") for name in names):
        raise InputError(f"{label} has only GGUF weights: give the path of one .gguf file (from the Hub, download it).")
    others = sorted(name for name in names if name.endswith(".safetensors"))
    found = f" beside {others[0]}, which transformers does not read" if others else ""
    raise InputError(f"{label} has no weights{found}: expected model.safetensors (or its shards with their index).")


def _variant_of(names: Collection[str]) -> WeightFiles | None:
    found = {name: match[1] or match[2] for name in sorted(names) if (match := _VARIANT.fullmatch(name))}
    if not found:
        return None
    name, variant = next(iter(found.items()))
    shards = sorted(name for name in names if re.fullmatch(rf"model\.{variant}-\d+-of-\d+\.safetensors", name))
    return WeightFiles("safetensors", (name, *shards), variant)


def _weights_of(weight_format: WeightFormat, names: Collection[str]) -> WeightFiles | None:
    stem = _STEM[weight_format]
    whole = f"{stem}.{weight_format}"
    index = f"{whole}.index.json"
    if whole in names:
        return WeightFiles(weight_format, (whole,))
    if index not in names:
        return None
    shards = sorted(name for name in names if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.{weight_format}", name))
    if not shards:  # the index may give its shards any name: it is read once the files are here
        shards = sorted(name for name in names if name.endswith(f".{weight_format}") and not _NO_SHARD.fullmatch(name))
    return WeightFiles(weight_format, (index, *shards))


def check_folder(folder: Path, label: str, *, allow_bin: bool) -> WeightFiles:
    """The weights of a local checkpoint folder, after checks that need no model."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if "adapter_config.json" in names:
        # transformers would follow the adapter's config to a base model elsewhere, or inject it without a word
        raise InputError(
            f"{label} holds a PEFT adapter{_base_of(folder)}: load the base model with adapter={label!r},"
            " or merge the adapter into the model first."
        )
    try:
        weights = choose_weights(names, label, allow_bin=allow_bin)
    except InputError as error:
        raise _below(folder, label) or error from None
    if "config.json" not in names:
        raise InputError(f"{label} has no config.json: give a folder written by save_pretrained.")
    files = weights.files(folder)
    missing = sorted(shard for shard in files if not (folder / shard).is_file())
    if missing:
        raise InputError(f"{label} lacks {missing[0]}, which {weights.index} names: copy or download the checkpoint again.")
    for name in files:
        with (folder / name).open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(
                    f"{name} of {label} is a Git LFS pointer and holds no weights: fetch them with `git lfs pull`."
                )
    return weights


def _below(folder: Path, label: str) -> InputError | None:
    """The error for a folder of a training run, whose checkpoints lie one folder deeper; None if there are none."""
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if not inside:
        return None
    return InputError(f"{label} has no weights itself, but its folder {inside[-1]} is a checkpoint: give that one.")


def _shards(index: Path, weight_format: WeightFormat) -> list[str]:
    try:
        shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} cannot be read as the index of a sharded checkpoint: write it again.") from error
    for shard in shards:
        path = PurePosixPath(shard.replace("\\", "/"))
        if path.suffix != f".{weight_format}" or path.is_absolute() or ".." in path.parts:
            raise InputError(f"{index} names {shard!r}, which is not a {weight_format} shard: write it again.")
    return sorted(shards)


def _base_of(folder: Path) -> str:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return f" of {config['base_model_name_or_path']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_adapter(adapter: Path) -> Path:
    """`adapter` itself, InputError unless it is a folder that holds a PEFT adapter with safetensors weights."""
    if not adapter.is_dir():
        raise InputError(f"There is no adapter folder {adapter}: give a folder written by PEFT's save_pretrained.")
    if not (adapter / "adapter_config.json").is_file():
        if (adapter / "config.json").is_file():
            raise InputError(f"{adapter} holds a whole model and no adapter: load it as the model, without adapter=.")
        if (adapter / "latest" / "adapter_config.json").is_file():  # of a training that has not ended
            raise InputError(
                f"The training in {adapter} has not ended: run its command again, or give its last checkpoint, "
                f"{adapter / 'latest'}."
            )
        raise InputError(f"{adapter} has no adapter_config.json: give a folder written by PEFT's save_pretrained.")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter} has no adapter_model.safetensors: save the adapter again with safe_serialization=True.")
    try:
        json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{adapter}/adapter_config.json is not JSON ({error}): save the adapter again.") from error
    return adapter


def hub_snapshot(
    repo_id: str,
    *,
    revision: str | None,
    allow_bin: bool,
    trust_remote_code: bool,
    local_files_only: bool = False,
    **where: Any,
) -> Path:
    """The local folder of a Hub model's files, downloading those that are not there yet.

    Only what a decoder-only model needs is fetched. When the Hub is out of reach (or HF_HUB_OFFLINE is set), what
    earlier downloads left in the Hub's cache is taken.

    Args:
        where: `token` and `cache_dir`, as huggingface_hub takes them.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refusals = {
        HFValidationError: f"{repo_id!r} is neither a local folder, a .gguf file, a built-in alias nor a Hub id "
        "(owner/name).",
        GatedRepoError: f"{repo_id} is gated: accept its licence on the Hugging Face Hub and log in with `hf auth login`.",
        RepositoryNotFoundError: f"There is no folder {repo_id!r} here and no such model on the Hugging Face Hub (or it is "
        "private): check the name.",
        RevisionNotFoundError: f"{repo_id} has no revision {revision!r} on the Hugging Face Hub: check it.",
    }
    try:
        if local_files_only:
            raise ConnectionError
        info = HfApi(token=where.get("token")).model_info(repo_id, revision=revision, timeout=HUB_TIMEOUT_SEC)
    except Exception as error:  # the HTTP library, and so the type of a connection error, differs between versions
        for kind, sentence in refusals.items():
            if isinstance(error, kind):
                raise InputError(sentence) from error
        # Some versions refuse a snapshot that lacks any file: ask for one, and leave the weights to `check_folder`.
        cached = _cached_snapshot(repo_id, revision, ["config.json"], where)
        if cached is None:
            raise InputError(
                f"The Hugging Face Hub is out of reach ({type(error).__name__}) and {repo_id} is neither a folder here"
                " nor in the Hub's cache: check the name and the connection."
            ) from error
        return cached

    names = [sibling.rfilename for sibling in info.siblings or []]
    if "adapter_config.json" in names:
        raise InputError(f"{repo_id} is a PEFT adapter and not a model: download it and pass its folder as adapter=.")
    wanted = wanted_files(names, repo_id, allow_bin=allow_bin, trust_remote_code=trust_remote_code)
    complete = _cached_snapshot(repo_id, info.sha, wanted, where)
    if complete is not None:
        return complete
    options = {"allow_patterns": wanted, "etag_timeout": HUB_TIMEOUT_SEC, **where}
    try:
        return Path(snapshot_download(repo_id, revision=revision, **options))
    except Exception as error:
        raise InputError(f"The download of {repo_id} failed ({type(error).__name__}): run it again.") from error


def wanted_files(names: Collection[str], label: str, *, allow_bin: bool, trust_remote_code: bool) -> list[str]:
    """The files of a Hub repository that loading needs: config, tokenizer, one format of weights, code if trusted."""
    weights = set(choose_weights(names, label, allow_bin=allow_bin).names)
    small = {name for name in names if _SMALL_FILE.fullmatch(name) and not name.endswith(".index.json")}
    code = {name for name in names if name.endswith(".py")} if trust_remote_code else set()
    return sorted(weights | small | code)


def _cached_snapshot(repo_id: str, revision: str | None, files: list[str], where: dict[str, Any]) -> Path | None:
    """The snapshot in the Hub's cache if it holds these files; asks the disk only, so it prints no progress."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=files, **where)
    except Exception:  # not there or not whole
        return None
    # A repository may lack the config, of which `check_folder` says what it is then.
    return Path(found) if files == ["config.json"] or all((Path(found) / name).is_file() for name in files) else None
