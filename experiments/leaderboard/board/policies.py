"""The policies, which pick a route for each prompt: rows of theirs are those of what they picked.

The router is after PuDDing (Wee et al., arXiv 2502.04348): for each number of layers a few sets were searched, each on one
kind of prompts, and a router that was trained to predict how well each does picks one. What differs: three kinds of prompts
in place of their tasks, greedy by KL in place of the tasks' likelihood, ridge regression on the model's own pass over the
prompt in place of a BERT, and agreement in place of the loss as what is predicted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import depthdial as dd
from depthdial.control.predictors.fitting import cross_validated, fit_predictor
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.measure.features import FeatureSpec
from depthdial.provenance import digest, environment
from depthdial.routes import Route

from .entries import BUDGETS, CANDIDATES, CONTROLLER, ELASTIC, FULL, ROUTER, ROUTER_DEPTHS, STATIC, TASKS, Config
from .searching import PROMPTS, training_task

if TYPE_CHECKING:
    from .bench import Bench

ROUTER_ROWS, ROUTER_TOKENS = 48, 24  # of each kind of prompts
CONTROLLER_ROWS, CONTROLLER_TOKENS = 192, 32
PREDICTOR, SEED = "ridge", 0
FILE = "policies.json"


def keep_policies(bench: Bench) -> None:
    """Fit what is not fitted on these weights yet, pick, and keep the rows."""
    path = bench.out / FILE
    told: dict[str, Any] = read_json(path, "policies") if path.exists() else {}
    for family, weights_hash, fit in (
        (ROUTER, bench.full.identity.weights_hash, _router),
        (CONTROLLER, bench.elastic.identity.weights_hash, _controller),
    ):
        known = told.get(family.name, {})
        if known.get("weights_hash") == weights_hash and known.get("rows") == bench.n_rows:
            continue
        print(f"{family.name}: fit", file=sys.stderr, flush=True)
        picks, about = fit(bench)
        for name, picked in picks.items():
            config = Config(family.name, f"{family.name}@{name}", family.weights, None, None)
            _keep(bench, config, picked, weights_hash)
        told[family.name] = {"weights_hash": weights_hash, "rows": bench.n_rows, **about, **environment()}
        write_json(path, told)


def _keep(bench: Bench, config: Config, picked: Sequence[str], weights_hash: str) -> None:
    """The rows of the configurations that were picked, one for each test row, under the policy's name."""
    rows = bench.board.read().set_index(["config", "sequence_id"])
    chosen = list(zip(picked, [one.id for one in bench.examples], strict=True))
    if (missing := next((one for one in chosen if one not in rows.index), None)) is not None:
        raise InputError(
            f"{missing[0]} has no row of {missing[1]!r}: run --only quality with the same data and --rows first."
        )
    own = rows.loc[chosen].reset_index()
    key = bench.key(config, weights_hash, picked=list(picked))
    bench.board.keep(config.family, own.assign(family=config.family, config=config.name, key=key))


def _router(bench: Bench) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """By number of layers, the configuration that each test prompt is sent to; and how the router was fitted."""
    greedy = next(family for family in STATIC if family.name == "greedy")
    found = {c.name: c for family in (greedy, *CANDIDATES) for c in family.configs(bench.families, ())}
    candidates = [c for c in found.values() if c.layers in ROUTER_DEPTHS]
    routes = [c.route for c in candidates]
    # Sets that two searches found alike are one column.
    distinct = list({route.layers: route for route in routes if isinstance(route, Route)}.values())
    session = bench.reference.untouched
    spec = FeatureSpec.of(session.n_layers, session.facts.width, distinct, "full")
    features, values = [], []
    for name in TASKS:
        task = training_task(bench.data, name, PROMPTS, ROUTER_ROWS)
        features.append(bench.features(task, spec))
        rows = dd.sweep(
            bench.full.model,
            bench.full.tokenizer,
            task=task,
            routes=distinct,
            metrics=("agreement",),
            fidelity_tokens=ROUTER_TOKENS,
            out=bench.work / "router" / name,
            reference=bench.reference,
            identity=bench.full.identity,
            batch_size=16,
            progress=True,
        ).to_pandas()
        values.append(_in_order(rows, task, [route.name for route in distinct]))
    table, seen = np.concatenate(values), np.concatenate(features)
    options: dict[str, Any] = {"groups": spec.groups, "seed": SEED}
    predicted = fit_predictor(PREDICTOR, seen, table, **options).predict(bench.features(bench.task, spec))
    held_out = cross_validated(PREDICTOR, seen, table, **options)
    picks: dict[str, list[str]] = {}
    gain: dict[str, Any] = {}
    for depth in ROUTER_DEPTHS:
        columns = [i for i, route in enumerate(distinct) if len(route) == depth]
        chosen = predicted[:, columns].argmax(1)
        picks[str(depth)] = [distinct[columns[place]].name for place in chosen]
        on_training = table[np.arange(len(table)), np.array(columns)[held_out[:, columns].argmax(1)]].mean()
        gain[str(depth)] = {
            "candidates": [distinct[i].name for i in columns],
            "picked": {distinct[columns[i]].name: int((chosen == i).sum()) for i in range(len(columns))},
            "agreement_of_picks_held_out": float(on_training),
            "agreement_of_best_single": float(table[:, columns].mean(0).max()),
        }
    about = {"tasks": list(TASKS), "training_rows": len(table), "response_tokens": ROUTER_TOKENS, "seed": SEED}
    return picks, {**about, "predictor": PREDICTOR, "features": spec.n_features, "by_layers": gain}


def _controller(bench: Bench) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """By budget of layer-steps, the configuration that each test prompt is sent to; and how the controller was fitted."""
    model, weights_hash = bench.elastic.model, bench.elastic.identity.weights_hash
    routes = [FULL, *(c.route for c in bench.configs if c.weights == ELASTIC)]
    controller = dd.SequenceController.fit(
        model,
        bench.elastic.tokenizer,
        task=training_task(bench.data, "alpaca", PROMPTS, CONTROLLER_ROWS),
        routes=routes,
        response_tokens=CONTROLLER_TOKENS,
        predictor=PREDICTOR,
        batch_size=32,
        seed=SEED,
        identity=bench.elastic.identity,
        out=_folder(bench.work, weights_hash),
        progress=True,
    )
    predicted = controller.predict(bench.features(bench.task, controller.card.features))
    names = [FULL if route.is_full else route.name for route in controller.routes]
    picks = {budget: [names[i] for i in controller.at(budget).pick(predicted)] for budget in BUDGETS}
    about = {"training_rows": CONTROLLER_ROWS, "response_tokens": CONTROLLER_TOKENS, "seed": SEED, "predictor": PREDICTOR}
    shares = {budget: {name: picked.count(name) for name in names} for budget, picked in picks.items()}
    return picks, {**about, "adapter": digest({"weights": weights_hash}), "r2": list(controller.card.r2), "picked": shares}


def fitted_folder(work: Path, told: Mapping[str, Any]) -> Path:
    """Where the controller is that was fitted last."""
    return _folder(work, told[CONTROLLER.name]["weights_hash"])


def _folder(work: Path, weights_hash: str) -> Path:
    return work / f"controller-{weights_hash[:12]}"


def _in_order(rows: pd.DataFrame, task: dd.Task, names: Sequence[str]) -> np.ndarray:
    """(n_sequences, n_routes) agreement, in the order of the task."""
    table = rows.pivot(index="sequence_id", columns="route", values="agreement")
    return table.loc[[e.id for e in task.examples], list(names)].to_numpy(dtype=float)
