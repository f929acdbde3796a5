"""What is measured: rows of every configuration, of policies over them, and the time of a decoding step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import depthdial as dd
from depthdial.data.tasks import encode
from depthdial.files import check_out_folder
from depthdial.measure.features import FeatureSpec, features_of
from depthdial.measure.references import Reference
from depthdial.provenance import digest

from .entries import BATCH, BOARD, CANDIDATES, ELASTIC, FP32, FULL, NEW_TOKENS, SMALLER, Config
from .rows import SCORES, Board
from .searching import MOST_PROMPT_TOKENS, search_all
from .weights import Held, base, held, why_absent

_KEPT_BYTES = 2**29  # of prompts, between sweeps


@dataclass(frozen=True)
class Bench:
    """One board in the making.

    Attributes:
        data: folder of data sets.
        out: what is committed: families, rows, times.
        work: unfinished work.
    """

    data: Path
    adapter: str
    out: Path
    work: Path
    n_rows: int

    @classmethod
    def of(cls, data: Path, adapter: str, out: Path, work: Path, n_rows: int) -> Bench:
        return cls(data, adapter, check_out_folder(out), check_out_folder(work), n_rows)

    @property
    def families(self) -> Path:
        return self.out / "families"

    @property
    def board(self) -> Board:
        return Board(self.out / "rows")

    @cached_property
    def task(self) -> dd.Task:
        return dd.task(self.data / "alpaca", split="test", limit=self.n_rows, max_prompt_tokens=MOST_PROMPT_TOKENS)

    @property
    def examples(self) -> Sequence[Any]:
        """Test rows, in order."""
        return self.task.examples

    def features(self, task: dd.Task, spec: FeatureSpec) -> np.ndarray:
        """(n_sequences, n_features) of the untouched full model's pass over a task's prompts."""
        session = self.reference.untouched
        encoded = encode(task, self.full.tokenizer, context_tokens=session.context_tokens)
        parts = [(batch, self.reference.prefill(batch, spec.watched)) for batch in session.batches(encoded, 16)]
        found = {e.id: row for batch, ready in parts for e, row in zip(batch, features_of(ready, spec), strict=True)}
        return np.stack([found[e.id] for e in encoded])

    @cached_property
    def full(self) -> Held:
        return base()

    @cached_property
    def elastic(self) -> Held:
        return held(ELASTIC, self.full, self.adapter, self.work)

    @cached_property
    def reference(self) -> Reference:
        """The untouched full model, with what it said."""
        return Reference.of(self.full.model, self.full.tokenizer, keep_bytes=_KEPT_BYTES)

    @cached_property
    def configs(self) -> tuple[Config, ...]:
        """All that is swept, by weights."""
        card = dd.adapter_card(self.elastic.model)
        assert card is not None
        found = [Config(FULL, FULL, FP32, FULL, 30)]
        for family in (*BOARD, *CANDIDATES):
            found += family.configs(self.families, card.routes)
        return tuple(one for one in found if one.route is not None)

    def held(self, weights: str) -> Held:
        return self.elastic if weights == ELASTIC else held(weights, self.full, self.adapter, self.work)

    def key(self, config: Config, weights_hash: str, **more: Any) -> str:
        """Of what decides about a configuration's rows."""
        about = {"config": config.name, "weights": weights_hash, "route": str(config.route), "tokens": NEW_TOKENS}
        return digest({**about, "data": self.task.source_fingerprint, "rows": self.n_rows, **more})[:16]

    def search(self) -> None:
        search_all(self.full.model, self.full.tokenizer, self.data, self.families)

    def quality(self) -> None:
        """Rows of every configuration but the policies'."""
        for weights in dict.fromkeys(config.weights for config in self.configs):
            if (why := why_absent(weights)) is not None:
                print(why, file=sys.stderr)
                continue
            one, known = self.held(weights), self.board.known()
            due = {
                self.key(config, one.identity.weights_hash): config for config in self.configs if config.weights == weights
            }
            due = {key: config for key, config in due.items() if key not in known}
            if due:
                print(f"{weights}: {', '.join(config.name for config in due.values())}", file=sys.stderr, flush=True)
                self._keep(weights, self._swept(weights, one, list(due.values())), due)

    def _swept(self, weights: str, one: Held, configs: Sequence[Config]) -> pd.DataFrame:
        options: dict[str, Any] = {"metrics": SCORES, "fidelity_tokens": NEW_TOKENS}
        if weights == SMALLER:
            options = {"metrics": ("rouge_l",)}
        elif weights == FP32:
            options |= {"reference": self.reference}
        elif weights != ELASTIC:
            options |= {"reference": self.full.model, "reference_hash": self.full.identity.weights_hash}
        table = dd.sweep(
            one.model,
            one.tokenizer,
            task=self.task,
            routes=[config.route for config in configs],
            out=self.work / "sweeps" / f"{weights}-{one.identity.weights_hash[:12]}",
            batch_size=BATCH,
            max_new_tokens=NEW_TOKENS,
            identity=one.identity,
            full_untouched=weights == ELASTIC,
            progress=True,
            **options,
        )
        return table.to_pandas()

    def _keep(self, weights: str, frame: pd.DataFrame, due: dict[str, Config]) -> None:
        """Rows of a sweep under the names of the board."""
        parts = []
        for key, config in due.items():
            named = config.route if isinstance(config.route, str) else config.name
            own = frame[frame["route"] == named]
            assert len(own) == len(self.examples), f"{config.name} has {len(own)} rows"
            parts.append(own.assign(family=config.family, config=config.name, key=key))
        self.board.keep(weights, pd.concat(parts))

    def policies(self) -> None:
        """Rows of the router and the controller: picked among those of their routes."""
        from .policies import keep_policies

        keep_policies(self)

    def gates(self) -> None:
        """Token gates, trained where they are not there yet, and their rows."""
        from .gates import keep_gates

        keep_gates(self)

    def time(self) -> None:
        from .clock import keep_times

        keep_times(self)
