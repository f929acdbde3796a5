"""Numbers that newer pages give or repeat: of the committed rows, or of a page whose own test holds it against them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))


def test_the_limits_are_those_of_the_rows() -> None:
    words = words_of("when-not.md")
    peers = json.loads((ROOT / "benchmarks/results/peers.json").read_text())
    rows = {(row["peer"], row["rows"]): row for row in peers["rows"]}
    ms = {name: f"{rows[name, 1]['ms_in_turns']:.1f}" for name in ("engine-bf16-full", "engine-full", "engine-bf16@90%")}
    kl = {name: f"{peers['quality'][name]['kl']['mean']:.3f}" for name in ("engine-bf16-full", "engine-bf16@90%")}
    bf16 = kl["engine-bf16-full"]
    assert f"({ms['engine-bf16-full']} against {ms['engine-full']} ms a token in `dd.Engine`) at a KL of {bf16}" in words
    assert f"27 layers in bf16 then take {ms['engine-bf16@90%']} ms, at a KL of {kl['engine-bf16@90%']}" in words
    native = rows["llama.cpp-native", 1]["ms_in_turns"], peers["quality"]["llama.cpp-native"]["kl"]["mean"]
    assert f"llama.cpp take {native[0]:.1f} ms at a KL of {native[1]:.3f}" in words
    for rows_at_once, at in ((1, "at one row"), (32, "at 32 rows")):
        half, full = (rows[name, rows_at_once]["tokens_per_sec"]["p50"] for name in ("engine-bf16@50%", "engine-bf16-full"))
        assert re.search(rf"{half / full:.2f} times[^(]*{at} \({half:.0f} against {full:.0f}\)", words)
    assert f"at {rows['hf-assisted-view', 1]['over_reference']['p50']:.2f} times its speed" in words

    engine = json.loads((ROOT / "benchmarks/results/engine.json").read_text())["rows"]
    first, full, half = (
        next(row["ms"] for row in engine if row["what"] == what and row["rows"] == 1)
        for what in ("first token, engine", "full", "half")
    )
    assert f"{first:.1f} ms, and each further one {full:.1f} ms at full depth and {half:.1f} ms on 15 layers" in words
    gains = [f"{(first + (n - 1) * full) / (first + (n - 1) * half):.2f}" for n in (2, 10, 100)]
    assert (
        f"2 tokens {gains[0]} times as fast, one of 10 tokens {gains[1]} times, one of 100 tokens {gains[2]} times" in words
    )
    assert f"takes {full:.1f} ms with 30 layers and {half:.1f} ms with 15" in words_of("faq.md")
    drafts = json.loads((ROOT / "benchmarks/results/speculation.json").read_text())["rows"]
    copying, ordinary = (
        next(row["times plain"] for row in drafts if (row["prompts"], row["rows"], row["depth"]) == (kind, 1, "lossless"))
        for kind in ("copying", "ordinary")
    )
    assert f"{copying:.2f} times as fast on copying, {ordinary:.2f} times on ordinary prompts of one row" in words


def test_the_tasks_that_pass_are_those_of_the_rows() -> None:
    scores = pq.read_table(ROOT / "experiments/qwen/rows/qwen-code/rows.parquet").to_pandas()
    passing = scores[~scores.route.str.startswith("uls")]
    passed = {layers: sum(rows.passed) for layers, rows in passing.groupby("layers_run")}
    words, tasks = words_of("when-not.md"), passing.sequence_id.nunique()
    assert f"of {tasks} code tasks {passed[28]:.0f} pass their tests with all layers" in words
    assert f"{passed[25]:.0f} with 25 and {passed[22]:.0f} with 22" in words
    searched = scores[(scores.layers_run == 25) & scores.route.str.startswith("greedy")]
    assert f"keeps {searched.agreement.mean():.0%} of its next tokens with 25 of 28 layers" in words


def test_what_pages_repeat_stands_on_the_pages_that_tests_hold_against_rows() -> None:
    by_depth = {
        w: pq.read_table(ROOT / f"experiments/elastic/{w}/rows.parquet").to_pandas() for w in ("untouched", "elastic")
    }
    means = {w: frame.groupby("layers_run")[["kl", "agreement"]].mean() for w, frame in by_depth.items()}
    untouched, elastic = means["untouched"], means["elastic"]
    words, kept = words_of("when-not.md"), untouched.agreement
    assert f"(agreement {kept[24]:.3f}), with 15 in {kept[15]:.0%} ({kept[15]:.3f})" in words
    assert f"27 layers are already too few ({kept[27]:.3f})" in words
    assert f"brings that to {elastic.agreement[24]:.3f} and {elastic.agreement[15]:.3f}" in words
    told = f"KL at 24 of 30 layers from {untouched.kl[24]:.3f} to {elastic.kl[24]:.3f} and agreement from"
    assert f"{told} {untouched.agreement[24]:.3f} to {elastic.agreement[24]:.3f}" in words_of("how-many-layers.md")
    repeated = {  # on the first page: what a test finds on the second
        ("when-not.md", "figure2.md"): ("25 of 30 layers lose 20 of its ROUGE-L", "27.4", "68.4"),
        ("when-not.md", "controllers.md"): ("45 [37, 53]", "-0.002 [-0.010, 0.003]"),
        ("when-not.md", "search.md"): ("0.302", "0.013", "0.222"),
        ("how-many-layers.md", "search.md"): ("0.302", "0.013", "0.222"),
        ("how-many-layers.md", "finetuning.md"): ("1,050,204 response tokens",),
        ("mathematics.md", "figure2.md"): ("40.5", "68.4", "14.4", "700 test rows"),
        ("mathematics.md", "guarantees.md"): ("4.5", "73.5", "4,000", "of 45"),
        ("faq.md", "guarantees.md"): ("0.0172",),
        ("faq.md", "search.md"): ("0.703", "3.297", "8.821"),
    }
    for (page, source), numbers in repeated.items():
        for number in numbers:
            assert number in words_of(page).replace("%", ""), f"{page}: {number}"
            assert number in words_of(source).replace("%", ""), f"{source}: {number}"
