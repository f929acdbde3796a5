"""The board's rows: one for each configuration and test row, of ids, hashes and scores; no text of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from depthdial.files import write_atomically

SCORES = ("rouge_l", "kl", "agreement")
_COLUMNS = (
    *("sequence_id", "route_layers", "layers_run", "prompt_tokens", "new_tokens", "finish_reason", *SCORES, "answer_hash"),
    *("model", "weights_hash", "dtype", "device", "task", "split", "template", "seed", "settings_hash"),
    *("versions", "hardware", "commit"),
)
FIRST = ("family", "config", "key")


@dataclass(frozen=True)
class Board:
    """A folder of rows, a file for each kind of weights and one for the policies.

    A configuration is there if it has rows of its key, which says what decides about them.
    """

    folder: Path

    def read(self) -> pd.DataFrame:
        parts = [pd.read_parquet(path) for path in sorted(self.folder.glob("*.parquet"))]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*FIRST, *_COLUMNS])

    def known(self) -> set[str]:
        """Keys of the configurations that are there."""
        return set(self.read()["key"])

    def keep(self, name: str, frame: pd.DataFrame) -> None:
        """Add rows to a file; those of the same configuration that are there are replaced."""
        path, parts = self.folder / f"{name}.parquet", [frame.reindex(columns=[*FIRST, *_COLUMNS])]
        if path.exists():
            there = pd.read_parquet(path)
            parts.append(there[~there["config"].isin(set(frame["config"]))])
        merged = pd.concat([part for part in parts if len(part)])
        merged = merged.sort_values(["family", "config", "sequence_id"], kind="stable").reset_index(drop=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, partial(_write, merged))


def _write(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False, compression="zstd")
