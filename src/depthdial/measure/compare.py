"""Answers of some depths to the same prompts, side by side, each decoded alone so that its time is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.data.tasks import Task, as_task
from depthdial.engine.generate import generate
from depthdial.engine.generation import Generation
from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.hf.architectures import count_layers
from depthdial.measure.plan import ModelIdentity, unique_routes
from depthdial.measure.sweep import sweep


@dataclass(frozen=True)
class DepthAnswer:
    """One depth's answer.

    Attributes:
        depth: as it was asked for.
        same_tokens: how many of its first tokens are those of the first depth's answer.
    """

    depth: str
    answer: Generation
    same_tokens: int

    @property
    def is_same(self) -> bool:
        """Whether nothing differs from the first depth's answer."""
        return self.same_tokens == self.answer.new_tokens


@dataclass(frozen=True)
class Comparison:
    """Answers of all depths to one prompt, in the order of the depths."""

    prompt: str
    answers: tuple[DepthAnswer, ...]


def compare(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    depths: Sequence[Any],
    prompt_depth: str = "full",
    max_new_tokens: int = 64,
    **options: Any,
) -> tuple[Comparison, ...]:
    """Answer prompts at several depths.

    Args:
        depths: what `generate` takes as depths, two or more; the first is what others are compared with.
        prompt_depth: `full` (prompts run every layer) or `route` (as an exported folder runs them).
        max_new_tokens: longest answer, in tokens.
        options: further ones of `generate`: routes, template, seed, do_sample, temperature, stop_strings, ..

    Returns:
        One Comparison for each prompt, in order.

    Raises:
        InputError: as `generate`, or for fewer than two depths.

    Example:
        >>> first = dd.compare(model, tokenizer, "the cat", depths=["full", "80%"], max_new_tokens=4)[0]
        >>> [(one.depth, one.answer.route.cost_layers) for one in first.answers]
        [('full', 6), ('80%', 4)]
    """
    depths, texts = list(depths), [prompts] if isinstance(prompts, str) else list(prompts)
    if len(depths) < 2:
        raise InputError(f"There are {len(depths)} depths to compare: give two or more, such as full,80%.")
    alone = {"prompt_depth": prompt_depth, "max_new_tokens": max_new_tokens, **options, "batch_size": 1}
    # The first answer of a process takes longer, and is nobody's.
    generate(model, tokenizer, texts[:1], depth=depths[0], **{**alone, "max_new_tokens": 2})
    # A call for each depth, for a prompt that stands twice in one is drawn another answer for.
    answers = [generate(model, tokenizer, texts, depth=depth, **alone) for depth in depths]
    labels = [one if isinstance(one, str) else getattr(one, "name", str(one)) for one in depths]
    return tuple(Comparison(text, _beside(labels, group)) for text, *group in zip(texts, *answers, strict=True))


def _beside(labels: Sequence[str], answers: Sequence[Generation]) -> tuple[DepthAnswer, ...]:
    first = answers[0].tokens
    return tuple(
        DepthAnswer(label, answer, _n_same(first, answer.tokens)) for label, answer in zip(labels, answers, strict=True)
    )


def _n_same(first: Sequence[int], tokens: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, tokens, strict=False)) if a != b), min(len(first), len(tokens)))


def compare_rows(
    model: Any,
    tokenizer: Any,
    *,
    task: Task | str,
    depths: Any,
    out: Path | str,
    prompt_depth: str = "full",
    max_new_tokens: int = 64,
    batch_size: int = 8,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> pa.Table:
    """Sweep some depths with their answers kept, into a folder whose page shows them side by side.

    Args:
        depths: what `sweep` takes as routes; the first is what others are compared with.
        out: folder for the rows; a stopped run goes on there.

    Returns:
        The rows of the sweep.

    Raises:
        InputError: as `sweep`, or for fewer than two depths.
    """
    task, chosen = as_task(task), unique_routes(depths, count_layers(model), model)
    if len(chosen) < 2:
        raise InputError(f"{depths!r} is one depth: give two or more to compare, such as full,80%.")
    rows = sweep(
        model,
        tokenizer,
        task=task,
        routes=chosen,
        metrics=("rouge_l", "agreement"),
        out=out,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        fidelity_tokens=max_new_tokens,
        prompt_depth=prompt_depth,
        keep_text=True,
        identity=identity,
        progress=progress,
    )
    # In the order asked for, by which the page knows what others are compared with.
    write_json(Path(out) / "study.json", {"kind": "compare", "routes": [route.name for route in chosen]})
    return rows
