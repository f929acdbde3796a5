"""Evaluations of a made-up model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from depthdial.rows.evals import EvalFolder, EvalResults, EvalScore, EvalUnit

DEPTHS = {"full": 30, "greedy-kl:27": 27, "greedy-kl:24": 24, "uls:20": 20, "ee:15": 15}


def made(n_tasks: int = 3, n_documents: int = 60, depths: dict[str, int] | None = None) -> list[EvalUnit]:
    """Accuracy falls with every layer that goes, the full model's documents are harder for the others, too."""
    chance = np.random.default_rng(2)
    found = []
    for number in range(n_tasks):
        hard = chance.random(n_documents)
        for depth, layers in (depths or DEPTHS).items():
            right = (hard < 0.1 + 0.026 * layers).astype(float)
            surprise = 2 + 0.15 * (30 - layers) + chance.random(n_documents)
            scores = tuple(
                EvalScore(name, "none", float(each.mean()), float(each.std(ddof=1) / n_documents**0.5), up, tuple(each))
                for name, each, up in (("acc", right, True), ("perplexity", surprise, False))
            )
            scores = scores if number % 2 == 0 else scores[::-1]
            about = {"versions": "python=3.11", "hardware": "a machine", "commit": "abc"}
            scored = (float(layers), 30, "route", n_documents, 0, "1.0", scores, 0.25, 0.0, 2.5, about)
            found.append(EvalUnit(f"task_{number}", depth, f"0-{layers - 1}", *scored))
    return found


def save(folder: Path, units: list[EvalUnit] | None = None) -> EvalResults:
    store = EvalFolder({"model": "tiny-model", "limit": None, "lm_eval": "0.4.13"}, folder)
    for number, unit in enumerate(units or made()):
        store.write(f"{unit.task}-{number}", unit)
    return EvalResults.load(folder)
