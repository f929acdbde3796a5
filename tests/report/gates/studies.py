"""Fabricated gates studies: rows and maps with plausible trends, made without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.files import write_json
from depthdial.rows.gates import GATE_COLUMNS, GateMap
from depthdial.rows.store import PROVENANCE_COLUMNS, schema_of

TARGETS = (0.4, 0.5, 0.65, 0.8)
TEXT = (
    *(" state", " the", " main", " reason", ":", "\n", "The", " water", " cycle", " moves", " water", " from"),
    *(" the", " oceans", " to", " the", " air", ",", " where", " it", " cools", " and", " falls", " as", " rain", "."),
)


def gate_rows(
    *,
    n_layers: int = 12,
    n_sequences: int = 24,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    targets: Sequence[float] = TARGETS,
    help_points: float = 0.3,
    references: bool = True,
) -> pa.Table:
    """All controllers; `hidden` is better than `fixed` by so many points of ROUGE-L."""
    rows = _rows_of("full", "none", None, None, n_layers, n_sequences, 0.0, references)
    for target in targets:
        for mode in ("sampled", "argmax"):
            for seed in seeds:
                rows += _rows_of("hidden", mode, target, seed, n_layers, n_sequences, help_points, references)
                rows += _rows_of("fixed", mode, target, seed, n_layers, n_sequences, 0.0, references)
        for seed in seeds:
            rows += _rows_of("bernoulli", "sampled", target, seed, n_layers, n_sequences, -1.0, references)
        for name, worse in (("static", -0.5), ("margin", -4.0), ("saturation", -6.0)):
            rows += _rows_of(name, "none", target, None, n_layers, n_sequences, worse, references)
    for name, better in (("position", 0.1), ("embedding", -0.3), ("embedding+position", 0.0)):
        for mode in ("sampled", "argmax"):
            for seed in seeds:
                rows += _rows_of(name, mode, 0.5, seed, n_layers, n_sequences, better, references)
    return pa.Table.from_pylist(rows, schema=schema_of(GATE_COLUMNS))


def _rows_of(
    controller: str,
    mode: str,
    target: float | None,
    seed: int | None,
    n_layers: int,
    n_sequences: int,
    points: float,
    references: bool,
) -> list[dict[str, Any]]:
    key = f"{controller}/{mode}/{target}/{seed}"
    noise, luck = np.random.default_rng(list(key.encode())), np.random.default_rng([7, 0 if seed is None else seed])
    of_seed = 0.004 * luck.normal() if seed is not None else 0.0
    fraction = 1.0 if target is None else target + 0.006 * noise.normal()
    rows = []
    for i in range(n_sequences):
        run = n_layers * (1.0 if target is None else min(1.0, fraction + 0.01 * noise.normal()))
        keep = 1.0 if target is None else 1 - math.exp(-5 * fraction)
        score = keep * (0.3 + 0.12 * math.sin(i)) + points / 100 + of_seed + 0.02 * noise.normal()
        new_tokens, step_sec = 40 + i % 7, (1.5 + 0.9 * run) / 1000
        steps, size = 48, min(16, n_sequences - i // 16 * 16)
        full_flops = 1e6 * n_layers * (new_tokens - 1)
        rows.append(
            {
                **dict.fromkeys(PROVENANCE_COLUMNS, "fabricated"),
                "sequence_id": f"s{i}",
                "controller": controller,
                "mode": mode,
                "target": target,
                "train_seed": seed,
                "n_layers": n_layers,
                "layers_run": run,
                "prompt_tokens": 30,
                "reference_tokens": 25 if references else None,
                "new_tokens": new_tokens,
                "finish_reason": "length",
                "rouge_l": min(1.0, max(0.0, score)) if references else None,
                "nll": 1.6 + 1.5 * (1 - keep) - points / 50 + 0.02 * noise.normal() if references else None,
                "kl": 0.0 if target is None else 2 * (1 - keep),
                "agreement": 1.0 if target is None else min(1.0, max(0.0, keep - 0.1 + points / 60 + 0.02 * noise.normal())),
                "decode_flops": full_flops * (run / n_layers + 0.1 * (1 - run / n_layers)),
                "decide_flops": 0.0 if controller in ("full", "static") else 0.01 * full_flops,
                "head_flops": 4e6 * new_tokens,
                "prompt_flops": 3e7 * n_layers,
                "batch_size": size,
                "batch_steps": steps,
                "batch_decode_sec": steps * step_sec,
                "decode_sec": steps * step_sec / size,
                "answer_hash": f"{i:04x}",
            }
        )
    return rows


def gate_map(
    controller: str = "hidden",
    mode: str = "sampled",
    *,
    n_layers: int = 12,
    n_tokens: int = 26,
    n_prompt: int = 5,
    target: float = 0.5,
    tokens: Sequence[str] | None = None,
) -> GateMap:
    """First and last layer always run, the others by a rate that falls with depth; `argmax` is the same for all tokens."""
    texts = tuple(tokens) if tokens is not None else tuple(TEXT[i % len(TEXT)] for i in range(n_tokens))
    rng = np.random.default_rng(len(texts))
    rates = np.clip(np.linspace(2 * target, 0, n_layers), 0, 1)
    ran = (rng.random((len(texts), n_layers)) < rates) if mode == "sampled" else np.tile(rates > target, (len(texts), 1))
    ran[:, [0, -1]] = True
    ran[:n_prompt] = True
    prompt = tuple(i < n_prompt for i in range(len(texts)))
    return GateMap(controller, mode, target, 0, n_layers, "s0", texts, prompt, tuple(map(tuple, ran.tolist())))


def make_gate_study(folder: Path, mapped: Sequence[str] = ("fixed", "hidden"), **options: Any) -> Path:
    """rows.parquet, study.json and a map of each of `mapped` in each mode."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = gate_rows(**options)
    pq.write_table(rows, folder / "rows.parquet")
    write_json(folder / "study.json", {"targets": list(TARGETS), "seeds": [0, 1, 2, 3, 4], "token_budget": 100_000})
    n_layers = rows["n_layers"][0].as_py()
    for controller in mapped:
        for mode in ("sampled", "argmax"):
            gate_map(controller, mode, n_layers=n_layers, n_tokens=60).save(folder / "maps" / f"{controller}-{mode}.json")
    return folder
