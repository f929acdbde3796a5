"""`dd.export`: a route as files that other programs run, measured as they will run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.checks import choice, whole
from depthdial.control.controller import SequenceController
from depthdial.data.leakage import seen_before
from depthdial.data.tasks import Task, as_task
from depthdial.data.tasks import task as make_task
from depthdial.engine.depth import Depth, LosslessDepth, RouteDepth
from depthdial.errors import InputError
from depthdial.exports.card import CARD_FILE, card_text, commands
from depthdial.exports.compare import Comparison
from depthdial.exports.folder import EXPORT_FILE, RECORD, found_there, read_record, write_folder
from depthdial.exports.quality import ROWS, Measuring, Quality, measure, study_scores
from depthdial.exports.ways import DRAFT_FILE, GGUF_FILE, WAYS, Job, Written, reload, where_loaded
from depthdial.files import write_text
from depthdial.hf.adapter import adapter_card, warn_if_outside
from depthdial.hf.gguf_write import GGUF_TYPES
from depthdial.hf.prompts import warn_if_prompts_differ
from depthdial.hf.untouched import has_adapters_on
from depthdial.measure.plan import ModelIdentity
from depthdial.provenance import environment
from depthdial.routes import RandomRoute, Route

_BUILTIN_ROWS = 48
_SERVE = "serve it with `depthdial serve`"


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: where it is.
        comparison: of the files, loaded again, with the model; None where the checkpoint stays where it is.
        quality: as it will run, beside the route as studies run it; None where it was not measured.
        commands: lines that run it.
        notes: what could not be written, in sentences.
        is_new: whether it was written now, and not found from before.

    Example:
        >>> done = dd.export(model, tokenizer, depth="uls:3", out=folder / "three", measured=False)
        >>> done.is_new, done.quality
        (True, None)
    """

    folder: Path
    to: str
    route: Route
    comparison: Comparison | None
    quality: Quality | None
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_new: bool = True


def export(
    model: Any,
    tokenizer: Any,
    *,
    depth: Any,
    out: Path | str,
    to: str = "hf",
    name: str | None = None,
    adapter: str | None = None,
    gguf_type: str | None = None,
    source: Path | str | None = None,
    measured: bool = True,
    task: Task | str | os.PathLike[str] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    study: Path | str | None = None,
    allow_searched_rows: bool = False,
    progress: bool = False,
) -> Export:
    """Write a route of a model as files that other programs run, and measure it as they will run it.

    Adapters that are on are merged into the weights, and configurations are cut layer by layer; the model itself stays as
    it is. What has weights is loaded again and compared: a folder's logits are those of the view, bit for bit. The folder
    appears whole or not at all; the same call again measures what is missing. A saved route has no other layers, so it runs
    **prompts on the route too**, and studies do not: both are measured on the same rows, and the card has both.

    Args:
        depth: one route, as `dd.generate` takes it: a Route, its text, a share or a count of layers.
        out: the folder to write, which must not hold anything else.
        to: `hf` (a folder of transformers), `gguf` (llama.cpp), `draft` (a draft model for vLLM, and for llama.cpp where its
            architecture can be written), or `vllm` (the route of an unmodified checkpoint, for the plugin).
        name: what the model was loaded by. With it, `vllm` refers to that checkpoint; otherwise it writes the weights.
        adapter: what the adapter on the model is called, for the card.
        gguf_type: `f32`, `f16` (the default), `bf16` or `q8_0`.
        source: the GGUF file that the model was loaded from: without `gguf_type` its tensors are copied as they are.
        measured: whether to measure.
        task: rows to measure on; default: 48 of the built-in ones.
        max_new_tokens: longest answer for ROUGE-L, in tokens.
        batch_size: sequences run together.
        study: folder of a study or sweep that measured the route, whose numbers stand beside.
        allow_searched_rows: also measure on rows that the route was searched on, or the model trained on: it flatters them.

    Raises:
        InputError: for a depth that is not one route, a folder that holds something else, a model that the format cannot
            describe, and files that do not compute what the model does.

    Warns:
        RouteWarning: for a route, or an adapter, that was made for prompts that run another way than in the export.

    Example:
        >>> done = dd.export(model, tokenizer, depth="uls:50%", out=folder / "half", task=task)
        >>> done.comparison.is_equal, done.route.layers
        (True, (0, 2, 4))
        >>> dd.load(folder / "half")[0].num_parameters() < model.num_parameters()
        True
    """
    route, out = exported_route(depth, model), Path(out)
    shipped_depth = "full" if to == "vllm" else "route"  # whatever has no other layers than the route runs prompts on it
    way = WAYS[choice("way out", to, tuple(WAYS))]
    source = _checked_source(to, gguf_type, source, model)
    whole("max_new_tokens", max_new_tokens, 1)
    whole("batch_size", batch_size, 1)
    rows = _rows(task) if measured else None
    if study is not None:
        study_scores(Path(study), route)
    warn_if_outside(model, route)
    warn_if_prompts_differ(model, route, shipped_depth)
    identity = ModelIdentity.of(model, name)
    card = adapter_card(model)
    if adapter is None and has_adapters_on(model):
        adapter = "unnamed" if card is None else card.kind
    label = name or identity.name
    job = Job(model, tokenizer, route, identity, label, where_loaded(name, model), gguf_type, source, adapter)
    about = _about(job, to)
    record = found_there(out, about)
    is_new = record is None
    if record is None:
        write_folder(out, lambda part: _write(way(job, part), part, out, job, about))
        record = read_record(out)
        assert record is not None
    quality = None if record["measured"] is None else Quality.of_record(record["measured"])
    if rows is not None and quality is None:
        how = Measuring(
            rows, max_new_tokens, batch_size, None if study is None else Path(study), allow_searched_rows, progress
        )
        shipped = None if shipped_depth == "full" else reload(out / GGUF_FILE if to == "gguf" else out, model)[0]
        quality = measure(model, shipped, tokenizer, route, out / ROWS, how)
        record = {**record, "measured": quality.record()}
        _write_record(out, out, job, to, record)
    return _finished(out, job, to, record, quality, is_new)


def exported_route(depth: Any, model: Any) -> Route:
    """The one route that a depth stands for on a model.

    Raises:
        InputError: for a depth that is another route for each sequence, prompt or token.
    """
    found = Depth.parse(depth, model)
    if isinstance(found, RouteDepth):
        if isinstance(found.route, RandomRoute):
            raise InputError(
                f"{found.name!r} draws other layers for every sequence, and a folder has one set of layers: export one "
                "route, such as .for_sequence(id) gives."
            )
        return found.route
    if isinstance(found, LosslessDepth):
        raise InputError(
            f"The depth {found.name!r} runs every layer and drafts on some of them: export the route that drafts, with "
            "to='draft' (--to draft)."
        )
    if isinstance(found, SequenceController):
        raise InputError(
            f"The controller {found.name!r} chooses a route for every prompt, and a folder has one set of layers: export "
            f"one of its routes, or {_SERVE}."
        )
    raise InputError(
        f"The depth {found.name!r} decides for every token, and a folder has one set of layers: export a route, or {_SERVE}."
    )


def _checked_source(to: str, gguf_type: str | None, source: Path | str | None, model: Any) -> Path | None:
    if gguf_type is not None:
        choice("GGUF type", gguf_type, GGUF_TYPES)
        if to not in ("gguf", "draft"):
            raise InputError(f"The option gguf_type is for GGUF files, and to={to!r} writes none: leave it out.")
    if source is None:
        return None
    path = Path(source)
    if path.suffix.lower() != ".gguf" or not path.is_file():
        raise InputError(f"The source {source} is no GGUF file: give the .gguf file that the model was loaded from.")
    if has_adapters_on(model):
        return None  # whose weights are not those of the file
    return path


def _rows(given: Any) -> Task:
    return make_task("builtin", limit=_BUILTIN_ROWS) if given is None else as_task(given)


def _about(job: Job, to: str) -> dict[str, Any]:
    """What makes two exports the same."""
    return {
        "to": to,
        "layers": str(job.route),
        "n_layers": job.route.n_layers,
        "model": job.name,
        "weights_hash": job.identity.weights_hash,
        "dtype": job.identity.dtype,
        "adapter": job.adapter,
        "gguf_type": job.gguf_type or ("as in the source" if job.source else "f16" if to in ("gguf", "draft") else None),
    }


def _write(written: Written, part: Path, out: Path, job: Job, about: Mapping[str, Any]) -> None:
    """The record and the card beside what was written."""
    seen = frozenset[str]().union(*seen_before([job.route], job.model).values())
    record = {
        **about,
        "route": job.route.name,
        "comparison": None if written.comparison is None else written.comparison.record(),
        "notes": list(written.notes),
        # Whoever loads the folder finds here what it may not be judged by.
        "training": {"data": {"prompts": sorted(seen)}},
        "measured": None,
        **environment(),
    }
    _write_record(part, out, job, about["to"], record)


def _write_record(folder: Path, out: Path, job: Job, to: str, record: Mapping[str, Any]) -> None:
    """Card and record, written into `folder`, of an export whose place is `out`."""
    quality = None if record["measured"] is None else Quality.of_record(record["measured"])
    comparison = None if record["comparison"] is None else Comparison.of_record(record["comparison"])
    facts = [
        *([] if comparison is None else [f"Loaded again and compared with the model: {comparison}."]),
        *record["notes"],
        f"Weights {record['weights_hash'][:16]} ({record['dtype']}), {record['versions']}, commit {record['commit']}.",
    ]
    lines = commands(to, Path(out.name), _base(job, to, Path(out.name)), has_draft_file=(folder / DRAFT_FILE).is_file())
    write_text(folder / CARD_FILE, card_text(to, job.name, job.adapter, job.route, quality, facts, lines))
    fields = {name: value for name, value in record.items() if name not in ("format", "version")}
    RECORD.write(folder / EXPORT_FILE, fields)


def _finished(out: Path, job: Job, to: str, record: Mapping[str, Any], quality: Quality | None, is_new: bool) -> Export:
    lines = commands(to, out, _base(job, to, out), has_draft_file=(out / DRAFT_FILE).is_file())
    comparison = None if record["comparison"] is None else Comparison.of_record(record["comparison"])
    return Export(out, to, job.route, comparison, quality, lines, tuple(record["notes"]), is_new)


def _base(job: Job, to: str, folder: Path) -> str:
    """What the whole model is loaded by."""
    return job.loaded_from or (str(folder) if to == "vllm" else job.name)
