"""What each way out writes: a folder of transformers, a GGUF file, a draft model, or a reference for vLLM.

Whatever has weights is loaded again as anyone would load it, and compared with the model that it was made of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from depthdial.errors import InputError, TokenizerWarning
from depthdial.exports.compare import Comparison, check_tokenizer, compare
from depthdial.hf.architectures import unwrap
from depthdial.hf.facts import ModelFacts
from depthdial.hf.gguf_cut import cut_gguf
from depthdial.hf.gguf_write import check_gguf_model, has_listed_windows, write_gguf
from depthdial.hf.load import checkpoint_of, load
from depthdial.hf.loaded import refusing
from depthdial.hf.quiet import quiet_transformers
from depthdial.hf.untouched import adapter_modules
from depthdial.hf.weights import weights_hash
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from depthdial.routes.route_file import HERE, RouteFile
from depthdial.views.view import merged_copy, quiet_view

GGUF_FILE, DRAFT_FILE = "model.gguf", "draft.gguf"
_LISTED = (
    "The file says layer by layer which attention is sliding. llama-cpp-python 0.3.36 reads that; older versions of "
    "llama.cpp take every sixth layer to be a full one, and compute something else."
)


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        model: the full model, with its adapter if it has one.
        name: what the model is called in cards and files.
        loaded_from: what other programs can load the model by; None where weights have to be written.
        gguf_type: of a GGUF file that is made of the model; None to copy `source`.
        source: the GGUF file that the model was loaded from.
        adapter: what is merged into the weights.
    """

    model: Any
    tokenizer: Any
    route: Route
    identity: ModelIdentity
    name: str
    loaded_from: str | None = None
    gguf_type: str | None = None
    source: Path | None = None
    adapter: str | None = None

    def view(self, layers: Any = None) -> Any:
        """The route's view (or that of other layers) as it is saved: with adapters merged into weights of its own."""
        made = quiet_view(self.model, self.route if layers is None else layers)
        return merged_copy(made).eval() if adapter_modules(made) else made


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        comparison: of what was loaded again; None where no weights were written.
        notes: what the reader of the card and the terminal should know.
    """

    comparison: Comparison | None
    notes: tuple[str, ...] = ()


def write_hf(job: Job, folder: Path) -> Written:
    """A folder that `from_pretrained`, vLLM and TGI load."""
    made = job.view()
    _save(made, job.tokenizer, folder)
    again, tokenizer = reload(folder, made)
    check_tokenizer(job.tokenizer, tokenizer, f"The folder of {job.name}")
    return Written(compare(made, again, job.tokenizer, f"The folder of {job.name}", exact=True))


def write_gguf_folder(job: Job, folder: Path, file: str = GGUF_FILE) -> Written:
    """A GGUF file for llama.cpp: made of the model, or copied layer by layer from the file that it was loaded from."""
    made, target = job.view(), folder / file
    if job.source is not None and job.gguf_type is None:
        cut_gguf(job.source, target, job.route.layers, job.route.n_layers)
        exact = True
    else:
        kind = job.gguf_type or "f16"
        write_gguf(
            made, job.tokenizer, target, file_type=kind, name=f"{job.name} ({len(job.route)} of {job.route.n_layers} layers)"
        )
        exact = False
    again, tokenizer = reload(target, made)
    check_tokenizer(job.tokenizer, tokenizer, f"The file {file}")
    notes = (_LISTED,) if has_listed_windows(made) else ()
    return Written(compare(made, again, job.tokenizer, f"The file {file}", exact=exact), notes)


def write_draft(job: Job, folder: Path) -> Written:
    """A folder to draft with, in vLLM; and beside it a GGUF file for llama.cpp, where one can be made."""
    if job.route.is_full:
        raise InputError("The full route drafts no faster than the model itself: give a depth that skips layers.")
    written = write_hf(job, folder)
    try:
        if job.source is None:
            check_gguf_model(job.view())
        notes = write_gguf_folder(job, folder, DRAFT_FILE).notes
    except InputError as reason:
        (folder / DRAFT_FILE).unlink(missing_ok=True)
        return Written(written.comparison, (f"No {DRAFT_FILE} for llama.cpp: {reason}",))
    return Written(written.comparison, notes)


def write_vllm(job: Job, folder: Path) -> Written:
    """The route of a checkpoint that stays as it is; the weights of all layers only where nobody else has them."""
    checkpoint, weights, comparison = job.loaded_from, job.identity.weights_hash, None
    if checkpoint is None:
        made = job.view(range(job.route.n_layers))
        _save(made, job.tokenizer, folder)
        again, _ = reload(folder, made)
        weights = weights_hash(made)
        comparison = compare(made, again, job.tokenizer, f"The folder of {job.name}", exact=True)
    RouteFile(job.route, job.name, checkpoint or HERE, weights, job.identity.dtype, job.adapter).save(folder)
    return Written(comparison)


WAYS: Mapping[str, Callable[[Job, Path], Written]] = MappingProxyType(
    {"hf": write_hf, "gguf": write_gguf_folder, "vllm": write_vllm, "draft": write_draft}
)


def where_loaded(name: str | None, model: Any) -> str | None:
    """What other programs load a model by, as it was named; None for one with an adapter, or in no form that they read."""
    return None if name is None or adapter_modules(unwrap(model)) else checkpoint_of(name)


def reload(path: Path, like: Any) -> tuple[Any, Any]:
    """A model and its tokenizer as anyone would load them, on the device and with the attention of another model."""
    is_own_code = type(like).__module__.startswith("transformers_modules")
    options: dict[str, Any] = {"trust_remote_code": True} if is_own_code else {}
    if path.suffix == ".gguf":
        options["dtype"] = like.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenizerWarning)  # said when the model was loaded
        return load(path, device=str(like.device), attn_implementation=ModelFacts.of(like).attention, **options)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with quiet_transformers(), refusing(type(model).__name__, "cannot be saved"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
