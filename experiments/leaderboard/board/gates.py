"""Token gates: small networks that decide for every token and layer whether it runs, one set for each budget of layers.

After arXiv 2410.20022, section 3 (Figure 1b): linear gates on the layer's input, drawn at their odds, trained on a model
that stays as it is, by the cross-entropy of its own answers. A dual variable holds the budget in place of the paper's fixed
price of layers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

import depthdial as dd
from depthdial.files import read_json, write_atomically, write_json
from depthdial.views.tokens.gate_folder import gates_depth, load_gates
from depthdial.views.tokens.gates import GATE_WEIGHTS_FILE, GATES_FILE

from .entries import BATCH, BUDGETS, FP32, GATE_TOKENS, GATES, NEW_TOKENS, Config
from .rows import SCORES
from .searching import PROMPTS, training_task

if TYPE_CHECKING:
    from .bench import Bench

TRAINING_ROWS, ANSWER_TOKENS, TRAINING_BATCH, RATE, SEED = 96, 48, 2, 0.1, 0


def settings_of(budget: str) -> dd.GateSettings:
    """How the gates of a budget such as "80%" of the layers are trained."""
    return dd.GateSettings(
        target=int(budget.removesuffix("%")) / 100,
        backbone="frozen",
        gate_learning_rate=RATE,
        run=dd.FinetuneSettings(answers="model", batch_size=TRAINING_BATCH, max_tokens=GATE_TOKENS, seed=SEED),
    )


def gates_folder(families: Path, budget: str) -> Path:
    """Where the gates of a budget are kept, beside the searched routes."""
    return families / f"{GATES.name}-{budget.removesuffix('%')}"


def depths(bench: Bench) -> dict[str, dd.TokenDepth]:
    """By configuration, the gates that are there, at work."""
    there = [budget for budget in BUDGETS if _is_there(bench, budget)]
    return {_name(budget): _depth(bench, budget) for budget in there}


def _name(budget: str) -> str:
    return f"{GATES.name}@{budget}"


def _is_there(bench: Bench, budget: str) -> bool:
    return (gates_folder(bench.families, budget) / GATES_FILE).exists()


def _depth(bench: Bench, budget: str) -> dd.TokenDepth:
    """The gates of a budget, drawn at their odds."""
    folder, weights_hash = gates_folder(bench.families, budget), bench.full.identity.weights_hash
    return gates_depth(load_gates(folder, bench.full.model, weights_hash=weights_hash)[1], "sampled", SEED)


def keep_gates(bench: Bench) -> None:
    """Train what is not there yet and keep its rows; a stopped training goes on."""
    for budget in BUDGETS:
        if not _is_there(bench, budget):
            print(f"{_name(budget)}: train", file=sys.stderr, flush=True)
            _train(bench, budget)
        _measure(bench, budget)  # one after another, so that a run that is stopped leaves what it has


def _train(bench: Bench, budget: str) -> None:
    task = training_task(bench.data, "alpaca", PROMPTS, TRAINING_ROWS)
    result = dd.train_gates(
        bench.full.model,
        bench.full.tokenizer,
        progress=True,
        task=dd.Task(**{**vars(task), "max_response_tokens": ANSWER_TOKENS}),
        out=bench.work / gates_folder(Path("gates"), budget).name,
        settings=settings_of(budget),
        identity=bench.full.identity,
    )
    keep_small(result.folder, gates_folder(bench.families, budget), result.record)


def keep_small(trained: Path, folder: Path, record: Any) -> None:
    """Put trained gates into a folder with weights of 16 bits, which is what is measured, and what their training says."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(trained / GATE_WEIGHTS_FILE).items()}
    write_atomically(folder / GATE_WEIGHTS_FILE, lambda path: save_file(halves, path))
    told = {name: record[name] for name in ("steps", "response_tokens", "distinct_response_tokens", "train_sec")}
    document = read_json(trained / GATES_FILE, "gates")
    document["about"] |= {"training": told | {"layer_rates": [round(rate, 4) for rate in record["layer_rates"]]}}
    write_json(folder / GATES_FILE, document)


def _measure(bench: Bench, budget: str) -> None:
    """Rows of the gates of a budget, where they have none."""
    name, depth = _name(budget), _depth(bench, budget)
    key = bench.key(Config(GATES.name, name, FP32, str(depth), None), bench.full.identity.weights_hash)
    if key in bench.board.known():
        return
    print(f"{name}: rows", file=sys.stderr, flush=True)
    rows = dd.sweep(
        bench.full.model,
        bench.full.tokenizer,
        task=bench.task,
        routes=[depth],
        metrics=SCORES,
        fidelity_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        batch_size=BATCH,
        reference=bench.reference,
        identity=bench.full.identity,
        out=bench.work / "sweeps" / f"{name}-{key}",
        progress=True,
    ).to_pandas()
    bench.board.keep(GATES.name, rows.assign(family=GATES.name, config=name, key=key))
