"""Result rows: their columns, and a folder of finished units that a killed run continues from.

A row is one (sequence, route), or one sampled answer of it. Rows hold ids, hashes and scores, and no text unless asked. A
unit, the rows of one batch on one route, is one Parquet file written by atomic rename: it is there whole or not at all. A
folder belongs to one set of settings, so rows made under different ones can never mix.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from depthdial.errors import InputError
from depthdial.files import claim, write_atomically
from depthdial.provenance import digest, environment

_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()


def typed(*groups: tuple[pa.DataType, str]) -> dict[str, pa.DataType]:
    """Columns in order, from the names of each kind."""
    return {name: kind for kind, names in groups for name in names.split()}


# What every row starts with: which sequence, which route. `layers_run` of a token-wise depth is the mean over the response's
# tokens.
KEY_COLUMNS = typed((_TEXT, "sequence_id route route_layers"), (_COUNT, "n_layers"), (_REAL, "layers_run cost"))
# Quality and cost of one generated answer (`sweep`). Theory and measured time are columns of their own. `sample` numbers
# the sampled answers of one (sequence, route) from 0; it is null for a greedy one, of which there can be no other. `agreed`
# says token by token what `agreement` is the mean of: 1 where the route would have chosen the full model's token, else 0.
SWEEP_COLUMNS = KEY_COLUMNS | typed(
    (_COUNT, "sample prompt_tokens reference_tokens new_tokens"),
    (_TEXT, "finish_reason"),
    (_REAL, "rouge_1 rouge_2 rouge_l nll kl agreement answer_nll"),
    (_REAL, "decode_flops prompt_flops head_flops decide_flops weight_bytes head_bytes embedding_bytes kv_bytes"),
    (_COUNT, "batch_size batch_steps"),
    (_REAL, "batch_decode_sec batch_prefill_sec step_sec decode_sec"),
    (_TEXT, "agreed answer_hash answer prompt reference"),
)
# Distance of a route's hidden states and predictions from the full model's (`similarity`).
SIMILARITY_COLUMNS = KEY_COLUMNS | typed(
    (_COUNT, "response_tokens"), (_REAL, "cosine_final cosine_pre_norm cosine_intermediate kl agreement")
)
# Greedy answers of something that ships beside the full model's (`check`). `agreement` is the share of the full answer's
# tokens before the first difference; `same` is 1 where there is none. Texts are there where asked for.
CHECK_COLUMNS = typed(
    (_TEXT, "sequence_id"),
    (_COUNT, "prompt_tokens full_tokens target_tokens"),
    (_TEXT, "full_finish target_finish"),
    (_REAL, "same agreement rouge_l_answers rouge_l rouge_l_full target_sec"),
    (_TEXT, "full_answer target_answer prompt reference"),
)
CHECK_FILE = "check.json"  # the verdict, beside the rows
CERTIFICATES_FILE = "certificates.json"  # of depths, beside the rows
# Where a study keeps its sweeps: of the untouched model, and of an adapter's routes.
STUDY_SWEEPS = ("sweep", "elastic")
_PROVENANCE = typed(
    (_TEXT, "model weights_hash dtype device task split template seed settings_hash versions hardware commit")
)
PROVENANCE_COLUMNS = tuple(_PROVENANCE)


def schema_of(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Columns, and where their numbers come from."""
    return pa.schema({**columns, **_PROVENANCE})


@dataclass(frozen=True)
class RunSettings:
    """What decides about the rows of a run; another value of any of them is another run.

    Attributes:
        settings: JSON-ready; holds at least model, weights_hash, task, split, template and seed.
    """

    settings: Mapping[str, Any]

    @property
    def hash(self) -> str:
        return digest(self.settings)

    def provenance(self) -> dict[str, str]:
        """One value for each of PROVENANCE_COLUMNS."""
        known = {**self.settings, **environment(), "settings_hash": self.hash}
        return {name: str(known.get(name, "")) for name in PROVENANCE_COLUMNS}


@dataclass
class UnitStore:
    """Finished units of one run: in a folder, or in memory where `folder` is None.

    Raises:
        InputError: on opening a folder that holds rows made with other settings, or one that cannot be written.
    """

    run: RunSettings
    columns: Mapping[str, pa.DataType]
    folder: Path | None = None
    _memory: dict[str, pa.Table] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.folder is not None:
            claim(self.folder / "settings.json", dict(self.run.settings), "run")

    @property
    def schema(self) -> pa.Schema:
        return schema_of(self.columns)

    def has(self, unit: str) -> bool:
        return unit in self._memory if self.folder is None else self._path(unit).exists()

    def write(self, unit: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the rows of one unit; a column that a row lacks is null."""
        rows, provenance = list(rows), self.run.provenance()
        for row in rows:
            if unknown := row.keys() - self.columns.keys():  # from_pylist would drop it without a word
                raise ValueError(f"rows have columns that are not in the schema: {', '.join(sorted(unknown))}")
            bad = next((name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)), None)
            if bad is not None:
                raise InputError(
                    f"{bad} is {row[bad]} for sequence {row.get('sequence_id')!r} on route {row.get('route')!r}: the "
                    "model's numbers are not finite there, try --dtype float32; finished units are kept."
                )
        table = pa.Table.from_pylist([{**row, **provenance} for row in rows], schema=self.schema)
        if self.folder is None:
            self._memory[unit] = table
        else:
            write_atomically(self._path(unit), lambda part: pq.write_table(table, part))

    def collect(self, units: Sequence[str], *, keep_others: bool = False) -> pa.Table:
        """All rows of `units`, in order; in a folder also written there as one file.

        Args:
            keep_others: in the file let the rows of the folder's other finished units follow, whichever call or process made
                them. Of two units that hold the same (sequence, route, sample) `units` win, then the newer one, for a batch
                may have grown and a route's name have come to mean other layers.
        """
        tables = [self._memory[unit] if self.folder is None else _read(self._path(unit)) for unit in units]
        table = self._joined(tables)
        if self.folder is None:
            return table
        # One process at a time lists the units and writes their rows, so that the last one to write has seen them all.
        with FileLock(self._path("rows").with_suffix(".lock")) if keep_others else nullcontext():
            whole = self._joined([table, *self._others(units, table)]) if keep_others else table
            write_atomically(self.folder / "rows.parquet", lambda part: pq.write_table(whole, part))
        return table

    def _joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        # Units from before a column was added lack it.
        return pa.concat_tables([self.schema.empty_table(), *tables], promote_options="permissive")

    def _others(self, units: Sequence[str], asked: pa.Table) -> list[pa.Table]:
        """The rows of other units in the folder, but those that have been replaced; batches in the order of `units`."""
        # A unit is named by its batch, then by its route: see `unit_name`.
        kinds = {unit.partition("-")[2]: None for unit in units}
        names = list(dict.fromkeys(asked["route"].to_pylist()))
        meant = dict(zip(names, kinds, strict=False)) if len(names) == len(kinds) else {}
        held = set(_keys(asked))
        kept: list[tuple[str, int, str, pa.Table]] = []
        places = {batch: place for place, batch in enumerate(dict.fromkeys(unit.partition("-")[0] for unit in units))}
        found = [path for path in self._path("any").parent.glob("*.parquet") if path.stem not in set(units)]
        for path in sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name)):
            table = _read(path)
            batch, _, kind = path.stem.partition("-")
            if not table.num_rows or meant.setdefault(table["route"][0].as_py(), kind) != kind:
                continue
            keys = _keys(table)
            table = table.filter(pa.array([key not in held for key in keys]))
            held.update(keys)
            kept.append((kind, places.get(batch, len(places)), path.stem, table))
        return [table for *_, table in sorted(kept, key=lambda one: one[:3])]

    def note(self, unit: str) -> Path | None:
        """A JSON file for what a unit needs besides rows; None in memory."""
        return None if self.folder is None else self._path(unit).with_suffix(".json")

    def _path(self, unit: str) -> Path:
        assert self.folder is not None
        return self.folder / "units" / f"{unit}.parquet"


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    """(sequence, route, sample) of each row."""
    columns = [table[name].to_pylist() for name in ("sequence_id", "route", "sample") if name in table.column_names]
    return [(*key, None)[:3] for key in zip(*columns, strict=True)]


def unit_name(sequence_ids: Iterable[str], route_key: str) -> str:
    """File name of a unit: legible, and different for any other sequences or route."""
    chunk = hashlib.sha256("\n".join(sequence_ids).encode(errors="surrogatepass")).hexdigest()[:12]
    legible = re.sub(r"[^a-z0-9]+", "-", route_key.lower()).strip("-")[:40]
    return f"{chunk}-{legible}-{hashlib.sha256(route_key.encode()).hexdigest()[:8]}"


def load_rows(path: Path | str) -> pa.Table:
    """The rows in a Parquet file or in a folder that holds one.

    Raises:
        InputError: if there are none.
    """
    path = Path(path)
    file = path / "rows.parquet" if path.is_dir() else path
    if not file.exists():
        raise InputError(f"There are no result rows at {file}: run `depthdial sweep` with --out {path} first.")
    return _read(file)


def without_text(rows: pa.Table) -> pa.Table:
    """The rows without the columns that hold a prompt, a reference or an answer, or could."""
    return rows.drop_columns([name for name in ("answer", "prompt", "reference") if name in rows.column_names])


def count_samples(rows: Any) -> int:
    """How many sampled answers of each (sequence, route) a table holds; 0 for greedy ones, which are not numbered."""
    names = rows.column_names if hasattr(rows, "column_names") else list(rows)
    if "sample" not in names:
        return 0
    column = rows["sample"]
    entries = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return len({entry for entry in entries if entry is not None and entry == entry})


def load_study_rows(folder: Path | str) -> pa.Table:
    """The rows of a study's sweeps, the untouched model's and then an adapter's, or of a sweep's own folder.

    Raises:
        InputError: if there are none.
    """
    folder = Path(folder)
    parts = [folder / name for name in STUDY_SWEEPS if (folder / name / "rows.parquet").exists()]
    return (
        pa.concat_tables([load_rows(part) for part in parts], promote_options="permissive") if parts else load_rows(folder)
    )


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a readable Parquet file ({error}): delete it and run again.") from error
