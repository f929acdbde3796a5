"""The card of an export: what it is, how it runs prompts, what was measured that way, and how to run it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from depthdial.exports.quality import Quality
from depthdial.report.kit.tables import Cells, Column, cell_text, finished
from depthdial.routes import Route
from depthdial.routes.route_file import ROUTE_FILE

CARD_FILE = "README.md"
COLUMNS = (Column("run", "run"), Column("layers", "layers run"), Column("agreement", "agreement with the full model"))
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_KINDS = {
    "hf": "a folder that transformers, vLLM and others load as any model",
    "gguf": "a GGUF file for llama.cpp",
    "draft": "a draft model for speculative decoding of the whole model",
    "vllm": "the route of an unmodified checkpoint, for Depthdial's plugin of vLLM",
}


def quality_table(quality: Quality) -> list[Cells]:
    """A row for each run that was measured."""
    table = [one.cells() for one in quality.scores]
    return finished(table, COLUMNS, keep=("run", "layers"))


def commands(to: str, folder: Path, base: str, *, has_draft_file: bool = False) -> tuple[str, ...]:
    """Command lines that run an export.

    Args:
        base: what the whole model is loaded by.
    """
    if to == "gguf":
        return (f"llama-cli -m {folder / 'model.gguf'} -p PROMPT",)
    if to == "draft":
        asked = json.dumps({"method": "draft_model", "model": str(folder), "num_speculative_tokens": 3})
        lines = [f"vllm serve {base} --speculative-config '{asked}'"]
        if has_draft_file:
            lines.append(f"llama-server -m MODEL.gguf --model-draft {folder / 'draft.gguf'}")
        return tuple(lines)
    if to == "vllm":
        if base == str(folder):  # where the file stands beside the weights
            return (f"vllm serve {folder}",)
        return (f"DEPTHDIAL_ROUTE={folder / ROUTE_FILE} vllm serve {base}",)
    return (f"vllm serve {folder}", f"depthdial generate {folder} PROMPT")


def card_text(
    to: str,
    name: str,
    adapter: str | None,
    route: Route,
    quality: Quality | None,
    facts: Sequence[str],
    lines: Sequence[str],
) -> str:
    """The README.md of an export.

    Args:
        facts: sentences on what was written and compared.
        lines: command lines.
    """
    base = f"base_model: {name}\n" if _HUB_ID.fullmatch(name) and not Path(name).exists() else ""
    with_adapter = "" if adapter is None else f" with the adapter {adapter} merged into its weights"
    return f"""---
{base}library_name: {"gguf" if to == "gguf" else "transformers"}
tags:
- depthdial
- layer-skipping
---

# {name}, {len(route)} of {route.n_layers} layers

Made by Depthdial: {_KINDS[to]}. It runs the layers {route} of {name}{with_adapter} (counted from 0), and no other.

{_prompts(to)}

## Quality

{_quality(to, quality)}

## Use

{"".join(f"    {line}" + chr(10) for line in lines)}
## Made by

{"".join(f"- {fact}" + chr(10) for fact in facts)}
The licence is that of {name}.
"""


def _prompts(to: str) -> str:
    if to == "draft":
        return (
            "As a draft model it runs prompts on these layers alone. What it drafts is checked by the whole model, so "
            "answers are the whole model's; its agreement with it, below, is the share of drafted tokens that are kept."
        )
    if to == "vllm":
        return (
            "The plugin runs prompts through every layer and answers on these, as Depthdial's own engine and its studies "
            "do; with its prompt depth set to route, prompts run on these layers alone, and the quality below does not hold."
        )
    return (
        "**Prompts run on these layers alone, too.** Depthdial's own engine and its studies run the prompt through every "
        "layer and only the answer on a route, so quality that was measured that way does not hold here: the table has both."
    )


def _quality(to: str, quality: Quality | None) -> str:
    if quality is None:
        return "Not measured: export without `--no-measure`, or run `depthdial sweep` on this folder."
    table = quality_table(quality)
    names = list(table[0])
    by = (
        " (of the file's weights in transformers, which does not round activations as llama.cpp does)"
        if to == "gguf"
        else ""
    )
    head = f"| {' | '.join(Column(name).label for name in names)} |\n| --- |{' ---: |' * (len(names) - 1)}"
    body = "\n".join(f"| {' | '.join(cell_text(name, row[name]) for name in names)} |" for row in table)
    return (
        f"Mean and 95% interval{by} over sequences of {quality.task} ({quality.split}), answers of at most "
        f"{quality.max_new_tokens} tokens, KL and agreement against the full model.\n\n{head}\n{body}\n\n{quality.sentence}"
    ).rstrip()
