"""The card of an export says what it is, how prompts run, what was measured so, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthdial.exports.card import card_text, commands, quality_table
from depthdial.routes import Route
from tests.exports.test_quality import QUALITY

ROUTE = Route((0, 1, 5), 6)


def card(to: str, **more) -> str:
    given = {
        "name": "org/llama",
        "adapter": None,
        "route": ROUTE,
        "quality": QUALITY,
        "facts": ["Fact."],
        "lines": ["run it"],
    }
    return card_text(to, **{**given, **more})


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_it_says_that_prompts_run_on_the_route(to: str) -> None:
    text = card(to)
    assert "**Prompts run on these layers alone, too.**" in text
    assert "| as exported, prompt on the route | 24 | 0.012 [0.100, 0.200] |" in text
    assert "| route, prompt at full depth | 24 | 0.166 [0.100, 0.200] |" in text
    assert "layers 0-1,5 of org/llama" in text and "\n    run it\n" in text and "- Fact.\n" in text


def test_the_plugin_runs_prompts_at_full_depth() -> None:
    assert "The plugin runs prompts through every layer" in card("vllm")


def test_a_draft_is_checked_by_the_whole_model() -> None:
    assert "the share of drafted tokens that are kept" in card("draft")


def test_the_front_matter_names_a_hub_id_alone() -> None:
    assert card("hf").startswith("---\nbase_model: org/llama\nlibrary_name: transformers\n")
    assert card("gguf", name="./folder").startswith("---\nlibrary_name: gguf\n")
    assert "with the adapter elastic merged" in card("hf", adapter="elastic")


def test_without_a_measurement_it_says_so() -> None:
    assert "Not measured" in card("hf", quality=None)


def test_the_table_has_a_row_for_each_run() -> None:
    table = quality_table(QUALITY)
    assert [row["run"] for row in table] == [one.what for one in QUALITY.scores]
    assert "kl" not in table[0]  # which no row has


def test_command_lines() -> None:
    folder = Path("out")
    line, other = commands("draft", folder, "org/llama", has_draft_file=True)
    assert json.loads(line.split("'")[1])["model"] == "out" and "--model-draft out/draft.gguf" in other
    assert commands("vllm", folder, "org/llama") == ("DEPTHDIAL_ROUTE=out/depthdial_route.json vllm serve org/llama",)
    assert commands("vllm", folder, "out") == ("vllm serve out",)
    assert commands("hf", folder, "org/llama")[0] == "vllm serve out"
    assert commands("gguf", folder, "org/llama") == ("llama-cli -m out/model.gguf -p PROMPT",)
