"""The searched families: one search for each method on training prompts of Alpaca, and one for each kind of the router's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import depthdial as dd

from .entries import DEPTHS, ROUTER_DEPTHS, TASKS

PROMPTS, ANSWER_TOKENS, SCREEN, MOST_PROMPT_TOKENS = 16, 24, 5, 256
ROUTER_PROMPTS, ROUTER_TOKENS = 8, 16
METHODS = ("greedy", "block-influence", "angular", "knapspec")


def training_task(data: Path, name: str, first: int, limit: int) -> dd.Task:
    """Training rows of a data set behind the first ones, which searches look at."""
    task = dd.task(data / name, split="train", limit=first + limit, max_prompt_tokens=MOST_PROMPT_TOKENS)
    return dd.Task(**{**vars(task), "examples": task.examples[first:]})


def search_all(model: Any, tokenizer: Any, data: Path, out: Path) -> None:
    """Write the families that are not there yet; a stopped search goes on."""
    out.mkdir(parents=True, exist_ok=True)
    sizes, router_sizes = (PROMPTS, ANSWER_TOKENS, min(DEPTHS)), (ROUTER_PROMPTS, ROUTER_TOKENS, min(ROUTER_DEPTHS))
    jobs = [("greedy-kl" if method == "greedy" else method, method, "alpaca", *sizes) for method in METHODS]
    jobs += [(f"greedy-kl-{task}", "greedy", task, *router_sizes) for task in TASKS if task != "alpaca"]
    for file, method, task, n_prompts, answer_tokens, min_layers in jobs:
        path = out / f"{file}.json"
        if path.exists():
            continue
        options: dict[str, Any] = {"screen": SCREEN} if method == "greedy" else {}
        dd.search_routes(
            model,
            tokenizer,
            task=training_task(data, task, 0, n_prompts),
            method=method,
            min_layers=min_layers,
            answer_tokens=answer_tokens,
            out=path,
            progress=True,
            **options,
        )
