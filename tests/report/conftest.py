"""A fabricated study folder: rows with plausible trends, made without a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.files import write_json
from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.oracles.predictable import PredictableCurve, predictable_oracle
from depthdial.report.pages import write_report
from depthdial.routes import AnyRoute, Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import PROVENANCE_COLUMNS, SIMILARITY_COLUMNS, SWEEP_COLUMNS

PROVENANCE = {
    "model": "fabricated-12",
    "weights_hash": "0" * 64,
    "dtype": "float32",
    "device": "cpu",
    "task": "fabricated",
    "split": "test",
    "template": "plain",
    "seed": "0",
    "settings_hash": "abc",
    "versions": "python=3.11 depthdial=0.1.0",
    "hardware": "a processor, 2 cores",
    "commit": "0123456789ab",
}


@dataclass(frozen=True)
class FakeStudy:
    """What `make_study` wrote, as the objects that it wrote."""

    folder: Path
    sweep: pa.Table
    similarity: pa.Table
    family: RouteFamily
    curves: dict[str, OracleCurve]


def drop_order(n_layers: int) -> list[int]:
    """A third of the layers, from the middle."""
    return [n_layers // 2 + (i + 1) // 2 * (-1) ** i for i in range(n_layers // 3)]


def searched_family(n_layers: int) -> RouteFamily:
    order = drop_order(n_layers)
    routes = [Route(tuple(range(n_layers)), n_layers, "full")]
    for n_dropped in range(1, len(order) + 1):
        layers = tuple(i for i in range(n_layers) if i not in order[:n_dropped])
        routes.append(Route(layers, n_layers, f"greedy-kl:{len(layers)}"))
    middle = (n_layers - 1) / 2
    importance: list[float | None] = [0.05 * math.exp(4.5 * abs(i - middle) / middle) for i in range(n_layers)]
    made_by = {
        "method": "greedy-kl",
        "metric": "KL(full || route), nats",
        "drop_order": order,
        "kl": [0.06 * 1.5**i for i in range(len(order))],
        "importance": importance,
        "calibration": {"n_sequences": 8, "n_tokens": 128},
        "seconds": 3.5,
    }
    return RouteFamily("greedy-kl", n_layers, tuple(reversed(routes)), made_by)


def _damage(route: Route) -> float:
    """How far a route is from the full model: skipped layers weigh by their distance from the middle."""
    middle = (route.n_layers - 1) / 2
    weights = [0.3 + 3 * (abs(i - middle) / middle) ** 2 for i in range(route.n_layers)]
    return 6 * sum(weights[i] for i in route.skipped) / sum(weights)


def _key(route: Route, name: str, sequence: str) -> dict[str, Any]:
    return {
        "sequence_id": sequence,
        "route": name,
        "route_layers": str(route),
        "n_layers": route.n_layers,
        "layers_run": len(route),
        "cost": route.cost,
    }


def sweep_rows(routes: list[AnyRoute], n_sequences: int, *, references: bool, text: bool, batch: int = 8) -> pa.Table:
    rows = []
    for number, rule in enumerate(routes):
        noise = np.random.default_rng(number)
        for i in range(n_sequences):
            route = rule.for_sequence(f"s{i}")
            size = min(batch, n_sequences - i // batch * batch)
            steps, step_sec = 20 + i // batch, (2.0 + 0.8 * len(route) + 0.05 * (i // batch)) / 1000
            damage = _damage(route)
            talent = 0.35 + 0.15 * math.sin(i)
            kl = 0.0 if route.is_full else damage * (0.8 + 0.4 * noise.random())
            rows.append(
                {
                    **_key(route, rule.name, f"s{i}"),
                    "prompt_tokens": 30,
                    "reference_tokens": 25,
                    "new_tokens": 21,
                    "finish_reason": "length",
                    "rouge_l": max(0.0, talent * math.exp(-damage / 3) + 0.08 * noise.normal()) if references else None,
                    "nll": 1.5 + damage if references else None,
                    "kl": kl,
                    "agreement": 1.0 if route.is_full else math.exp(-damage) * (0.9 + 0.1 * noise.random()),
                    "batch_size": size,
                    "batch_steps": steps,
                    "batch_decode_sec": steps * step_sec,
                    "batch_prefill_sec": 0.01,
                    "step_sec": step_sec,
                    "decode_sec": steps * step_sec / size,
                    "answer": f"answer {i} with {len(route)} layers" if text else None,
                    "prompt": f"prompt\n\n{i}" if text else None,
                    "reference": f"the reference of {i}" if text and references else None,
                }
            )
    return _table(rows, SWEEP_COLUMNS)


def similarity_rows(routes: list[AnyRoute], n_sequences: int) -> pa.Table:
    rows = []
    for number, rule in enumerate(routes):
        noise = np.random.default_rng(100 + number)
        for i in range(n_sequences):
            route = rule.for_sequence(f"s{i}")
            damage = _damage(route)
            wobble = 0.0 if route.is_full else 0.1 * damage * noise.random()
            rows.append(
                {
                    **_key(route, rule.name, f"s{i}"),
                    "response_tokens": 40,
                    "cosine_final": math.exp(-damage / 6 - wobble),
                    "cosine_pre_norm": math.exp(-damage / 7 - wobble),
                    "cosine_intermediate": math.exp(-damage / 9 - wobble),
                    "kl": damage * (1 + wobble),
                    "agreement": math.exp(-damage - wobble),
                }
            )
    return _table(rows, SIMILARITY_COLUMNS)


def _table(rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> pa.Table:
    fields = [pa.field(name, kind) for name, kind in columns.items()]
    schema = pa.schema([*fields, *(pa.field(name, pa.string()) for name in PROVENANCE_COLUMNS)])
    return pa.Table.from_pylist([{**PROVENANCE, **row} for row in rows], schema=schema)


def study_routes(n_layers: int) -> list[AnyRoute]:
    texts = ("full", "uls:75%", "uls:50%", "ee:75%", "ee:50%", "rls:75%@0")
    wanted = [route for route in searched_family(n_layers).routes if route.name != "full"][-4:]
    return [*(Route.parse(text, n_layers) for text in texts), *wanted]


def similar_routes(n_layers: int) -> list[AnyRoute]:
    costs = (0.1, 0.25, 0.5, 0.75, 0.9)
    texts = [f"{kind}:{max(1, round(c * n_layers))}" for kind in ("ee", "uls", "rls", "rls-wo1", "unified") for c in costs]
    routes = [Route.parse(text, n_layers) for text in ("full", *texts)]
    return list(dict.fromkeys([*routes, *searched_family(n_layers).routes]))


def make_study(
    folder: Path,
    *,
    n_layers: int = 12,
    n_sequences: int = 20,
    references: bool = True,
    text: bool = True,
    task: str = "fabricated",
    routes: list[AnyRoute] | None = None,
) -> FakeStudy:
    sweep = sweep_rows(routes or study_routes(n_layers), n_sequences, references=references, text=text)
    sweep = sweep.set_column(sweep.column_names.index("task"), "task", pa.array([task] * len(sweep)))
    similarity = similarity_rows(similar_routes(n_layers), max(1, n_sequences // 2))
    family = searched_family(n_layers)
    metrics = ("rouge_l", "agreement") if references else ("agreement",)
    curves = {metric: oracle(sweep, metric=metric, n_bootstrap=200, n_permutations=5) for metric in metrics}
    for name, rows in (("sweep", sweep), ("similarity", similarity)):
        (folder / name).mkdir(parents=True)
        pq.write_table(rows, folder / name / "rows.parquet")
        write_json(folder / name / "settings.json", {"kind": name, "prompt_depth": "full", "batch_size": 8})
    family.save(folder / "routes.json")
    write_json(folder / "oracle.json", {metric: curve.to_dict() for metric, curve in curves.items()})
    write_json(folder / "study.json", {"max_new_tokens": 21, "routes": []})
    return FakeStudy(folder, sweep, similarity, family, curves)


@pytest.fixture(scope="session")
def study_maker() -> Callable[..., FakeStudy]:
    return make_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    """One study for all tests that only read it."""
    return make_study(tmp_path_factory.mktemp("fabricated") / "study")


@dataclass(frozen=True)
class FakeSamples:
    """A sweep's folder with four sampled answers of everything, and its predictable oracle."""

    folder: Path
    rows: pa.Table
    curve: PredictableCurve


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> FakeSamples:
    folder, noise, rows = tmp_path_factory.mktemp("sampled"), np.random.default_rng(0), []
    for row in sweep_rows(study_routes(12), 20, references=True, text=True).to_pylist():
        for sample in range(4):
            score = float(np.clip(row["rouge_l"] + 0.1 * noise.normal(), 0, 1))
            rows.append({**row, "sample": sample, "rouge_l": score, "kl": None, "agreement": None, "nll": None})
    table = _table(rows, SWEEP_COLUMNS)
    curve = predictable_oracle(table, n_bootstrap=100, n_permutations=3, n_splits=5)
    pq.write_table(table, folder / "rows.parquet")
    write_json(folder / "predictable.json", {"rouge_l": curve.to_dict()})
    return FakeSamples(folder, table, curve)


@pytest.fixture(scope="session")
def page(study: FakeStudy) -> Path:
    """Its report, written once."""
    return write_report(study.folder)
