"""Rows and pictures of a gates study: what it measures of each per-token controller, and the files that hold it.

A study's folder holds rows.parquet (a row for each controller, target, seed, mode and sequence), maps/*.json (what ran,
token by token) and study.json (its settings). Needs no model, so that a report can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.rows.store import SWEEP_COLUMNS, load_rows, typed

# What a trained gate may look at: each is a controller of a study.
TRAINED_CONTROLLERS = ("hidden", "fixed", "position", "embedding", "embedding+position")
# The controls: chance at the gates' rates, one route for all tokens, CALM's confidence exits, and no controller at all.
CONTROLLERS = (*TRAINED_CONTROLLERS, "bernoulli", "static", "margin", "saturation", "full")
# How a controller's chances became decisions: drawn, the likelier one, or it has no chances.
MODES = ("sampled", "argmax", "none")

_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()
_OF_SWEEP = (
    *("prompt_tokens", "reference_tokens", "new_tokens", "finish_reason"),
    *("rouge_1", "rouge_2", "rouge_l", "nll", "kl", "agreement"),
    *("decode_flops", "head_flops", "prompt_flops"),
    *("batch_size", "batch_steps", "batch_decode_sec", "decode_sec", "answer_hash"),
)
# `target`: the fraction of all layers that was asked for, null for the full model. `train_seed`: null where nothing was
# trained. `layers_run`: mean over this sequence's response tokens. `decode_flops`: of the layers that ran and the keys and
# values of skipped ones; `decide_flops`: of deciding what runs. Seconds are measured, and a column of their own.
GATE_COLUMNS: dict[str, pa.DataType] = {
    **typed(
        (_TEXT, "sequence_id controller mode"), (_REAL, "target"), (_COUNT, "train_seed n_layers"), (_REAL, "layers_run")
    ),
    **{name: SWEEP_COLUMNS[name] for name in _OF_SWEEP},
    "decide_flops": _REAL,
}
_KEY = ("controller", "target", "train_seed", "mode", "sequence_id")
_STUDY_VERB = "depthdial gates-study"


@dataclass(frozen=True)
class GateMap:
    """What ran over the text of one answer.

    Attributes:
        target, train_seed: None as in the rows.
        tokens: the text of each token; those of the prompt may be its tail only.
        is_prompt: (n_tokens,) tokens that ran every layer whatever the controller said.
        ran: (n_tokens, n_layers) whether the layer ran for the token, 0 or 1.
    """

    controller: str
    mode: str
    target: float | None
    train_seed: int | None
    n_layers: int
    sequence_id: str
    tokens: tuple[str, ...]
    is_prompt: tuple[bool, ...]
    ran: tuple[tuple[int, ...], ...]

    @property
    def mean_layers(self) -> float | None:
        """Layers run for a response token; None without one."""
        counts = [sum(layers) for layers, prompt in zip(self.ran, self.is_prompt, strict=True) if not prompt]
        return sum(counts) / len(counts) if counts else None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GateMap:
        """
        Raises:
            InputError: if something is missing, or the lengths do not fit each other.
        """
        try:
            of_tokens = {name: tuple(stored[name]) for name in ("tokens", "is_prompt")}
            ran = tuple(map(tuple, stored["ran"]))
            found = cls(**{**{one.name: stored[one.name] for one in fields(cls)}, **of_tokens, "ran": ran})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"A gate map lacks a field or is damaged ({error}): run `{_STUDY_VERB}` again.") from error
        lengths = {len(found.tokens), len(found.is_prompt), len(ran)}
        if len(lengths) > 1 or lengths == {0} or {len(layers) for layers in ran} != {found.n_layers}:
            raise InputError(
                f"The gate map of sequence {found.sequence_id!r} has {len(found.tokens)} tokens and {len(ran)} "
                f"columns, or not {found.n_layers} layers in each: run `{_STUDY_VERB}` again."
            )
        return found

    def save(self, path: Path) -> Path:
        return write_json(path, asdict(self))


def load_gate_rows(folder: Path | str) -> pa.Table:
    """The rows of a gates study, from its folder or its rows.parquet.

    Raises:
        InputError: if there are none, they are no gates study's, or two rows are of one key.
    """
    table = load_rows(folder)
    require_gate_rows(table, str(folder))
    return table


def is_gates_study(folder: Path | str) -> bool:
    """Whether a folder holds the rows of a gates study, and not of a sweep."""
    path = Path(folder) / "rows.parquet"
    return path.exists() and "controller" in load_rows(path).column_names


def require_gate_rows(table: pa.Table, where: str = "The table") -> None:
    """InputError unless a table holds a gates study's rows, of one model depth and each once."""
    missing = next((name for name in GATE_COLUMNS if name not in table.column_names), None)
    if missing is not None:
        raise InputError(f"{where} holds no rows of a gates study (no column {missing!r}): run `{_STUDY_VERB}` first.")
    if not table.num_rows:
        raise InputError(f"{where} holds no row: run `{_STUDY_VERB}` with at least one sequence.")
    for name, known in (("controller", CONTROLLERS), ("mode", MODES)):
        unknown = sorted(set(map(str, table[name].unique().to_pylist())) - set(known))
        if unknown:
            raise InputError(f"{where} has rows of the {name} {unknown[0]!r}: known are {', '.join(known)}.")
    depths = sorted(table["n_layers"].unique().to_pylist())
    if len(depths) > 1:
        raise InputError(f"{where} has rows of models with {depths[0]} and {depths[-1]} layers: study one model at a time.")
    if table.select(_KEY).group_by(list(_KEY)).aggregate([]).num_rows < table.num_rows:
        raise InputError(f"{where} holds two rows of one {', '.join(_KEY)}: put each run's rows in once.")


def load_gate_maps(folder: Path | str) -> list[GateMap]:
    """The gate maps of a study's folder by the names of their files; none is no error.

    Raises:
        InputError: if one is damaged; the sentence names its file.
    """
    found = []
    for path in sorted((Path(folder) / "maps").glob("*.json")):
        try:
            found.append(GateMap.from_dict(read_json(path, "gate map")))
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
    return found
