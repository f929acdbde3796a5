"""Numbers in the README and in docs/ are those of the committed rows."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.oracles.predictable import PredictableCurve
from depthdial.report.kit.tables import cell_parts, cell_text
from depthdial.report.study.tables import headline, similarity_table
from depthdial.rows.store import load_study_rows
from depthdial.stats.intervals import mean_interval

ROOT = Path(__file__).parent.parent
README, DEMO = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/demo.md"))
KINDS_OF_FIGURE_2 = ("untouched", "specialist")
EMPTY_ANSWER = hashlib.sha256(b"").hexdigest()[:16]

# What docs/peers.md calls the peers of `benchmarks/results/peers.json`.
PEERS_BY_SPEED = {
    "transformers `generate`": "hf-eager",
    "with a static cache": "hf-static",
    "with a static cache, compiled": "hf-compiled",
    "continuous batching": "hf-continuous",
    "in bf16": "bf16",
    "8-bit weights (torchao)": "int8-torchao",
    "8-bit weights and inputs": "int8-dynamic",
    "prompt lookup": "hf-prompt-lookup",
    "`assistant_model=` a view of 15 layers": "hf-assisted-view",
    "`assistant_early_exit=15`": "hf-early-exit",
    "tide-inference": "tide",
    "tide-inference, every token leaves": "tide-always",
    "gemma-3-270m, a model of its own": "gemma-3-270m",
    "llama.cpp, f32": "llama.cpp-f32",
    "llama.cpp, f16": "llama.cpp-f16",
    "llama.cpp, Q4_1 as published": "llama.cpp-native",
    "`dd.generate`, all layers": "dial-full",
    "`dd.Engine`, all layers": "engine-full",
    "`dd.Engine`, `lossless`": "engine-lossless",
    "`dd.Engine`, all layers, bf16": "engine-bf16-full",
    "15 layers cut out, transformers `generate`": "pruned",
    "15 layers, `dd.generate`": "dial-route",
    "15 layers, `dd.Engine`": "engine-route",
    "15 layers, `dd.Engine`, bf16": "engine-bf16@50%",
}
PEERS_BY_QUALITY = {
    "transformers `generate`, fp32": ("hf-eager", "hf-eager"),
    "`dd.Engine`, fp32": ("engine-full", "hf-eager"),
    "transformers, bf16": ("bf16", "bf16"),
    "`dd.Engine`, bf16": ("engine-bf16-full", "engine-bf16-full"),
    "llama.cpp, f16": ("llama.cpp-f16", "llama.cpp-f16"),
    "llama.cpp, Q4_1": ("llama.cpp-native", "llama.cpp-native"),
    "8-bit weights (torchao)": ("int8-torchao", "int8-torchao"),
    "8-bit weights and inputs": ("int8-dynamic", "int8-dynamic"),
    "gemma-3-270m": ("gemma-3-270m", "gemma-3-270m"),
    "27 layers, `dd.Engine`, bf16": ("engine-bf16@90%", "engine-bf16@90%"),
    "21 layers, `dd.Engine`, bf16": ("engine-bf16@70%", "engine-bf16@70%"),
    "15 layers, `dd.Engine`, bf16": ("engine-bf16@50%", "engine-bf16@50%"),
    "27 layers, elastic adapter, `dd.generate`": ("elastic@90%", "elastic@90%"),
    "21 layers, elastic adapter, `dd.generate`": ("elastic@70%", "elastic@70%"),
    "15 layers, elastic adapter, `dd.generate`": ("elastic@50%", "elastic@50%"),
}


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_headline_is_that_of_the_demos_rows() -> None:
    timing = json.loads((ROOT / "experiments" / "demo" / "timing.json").read_text())
    rows = headline(load_study_rows(ROOT / "experiments" / "demo"), timing=timing)
    assert timing["routes"][0]["batch"] == 1 and "for one prompt" in re.sub(r"\s+", " ", DEMO)
    for row in rows:
        name = "full" if row["route"] == "full" else f"`{row['route']}`"
        line = next(line for line in DEMO.splitlines() if line.startswith("|") and f"{name} |" in line and "x |" in line)
        told = {column: cell_text(column, value) for column, value in row.items()}
        expected = [told[column] for column in ("layers", "cost_percent", "rouge_l")]
        expected += [cell_parts(column, row[column])[0] for column in ("agreement", "kl")]
        assert cells_of(line)[1:] == [*expected, f"{row['speed']:.2f}x"]


def test_the_star_is_that_of_the_demos_rows() -> None:
    document = json.loads((ROOT / "experiments" / "demo" / "oracle.json").read_text())
    curve = OracleCurve.from_dict(document["rouge_l"])
    assert curve.matches_full_at is not None and curve.matches_full_interval is not None
    low, high = (100 * end for end in curve.matches_full_interval)
    star = curve.table()[0]
    told = f"{star['layers']:.1f} | {100 * curve.matches_full_at:.1f} [{low:.1f}, {high:.1f}] | {curve.full_value:.3f}"
    assert f"| oracle, as good as full | {told} |" in DEMO
    words = re.sub(r"\s+", " ", DEMO)
    assert f"The oracle needs {curve.matches_full_at:.0%} of the full model's layer-steps" in words
    full_length = oracle(load_study_rows(ROOT / "experiments" / "demo"), steps="full", n_permutations=0)
    low, high = (100 * end for end in full_length.matches_full_interval or (0, 0))
    assert f"{full_length.matches_full_at:.0%} [{low:.0f}, {high:.0f}] with every answer counted at the full" in words
    by_layers = OracleCurve.from_dict(document["rouge_l by layers"])
    low, high = by_layers.matches_full_interval or (0, 0)
    assert by_layers.matches_full_at is not None
    told = f"{by_layers.matches_full_at:.1f} [{low:.1f}, {high:.1f}] of 30 layers ({by_layers.matches_full_at / 30:.0%}) per"
    assert told in words
    assert curve.permuted_matches_full_at is not None and curve.permuted_matches_full_at < curve.matches_full_at


@pytest.mark.parametrize("name", ["alpaca", "cnn_dailymail"])
def test_the_similarity_tables_are_those_of_the_rows(name: str) -> None:
    document = (ROOT / "docs" / "similarity.md").read_text(encoding="utf-8")
    table = similarity_table(pq.read_table(ROOT / "experiments" / "similarity" / name / "rows.parquet"))
    assert len(table) == 12
    for row in table:
        cells = [cell_text(column, value) for column, value in row.items() if column != "cost_percent"]
        assert f"| {' | '.join(cells)} |" in document


def test_the_speeds_are_those_of_the_benchmarks() -> None:
    names = ("decode", "oracle", "engine", "speculation")
    results = {name: json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text()) for name in names}
    decode, whole = results["decode"], results["oracle"]["comparisons"][-1]
    words, demo = (re.sub(r"\s+", " ", page) for page in (README, DEMO))
    step = {(row["what"], row["rows"]): row for row in results["engine"]["rows"]}
    full, half, many, half_many = (step[what, rows] for rows in (1, 32) for what in ("full", "half"))
    assert f"takes {full['ms']:.1f} ms with 30 layers and {half['ms']:.1f} ms with 15" in words
    assert f"{full['times HF']:.1f} and {half['times HF']:.1f} times as fast as `generate`" in words
    assert f"for 32 prompts it is {many['times HF']:.1f} and {half_many['times HF']:.1f} times" in words
    assert f"A view takes {decode['view_over_pruned']:.2f} of the time" in demo
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "engine.md").read_text(encoding="utf-8"))
    for what, row in (("all 30 layers", full), ("15 layers", half)):
        told = f"| {what} | 1 | {row['ms']:.1f} | {row['times HF']:.2f}x | {row['of the bandwidth']:.0%} |"
        assert told in page
    assert f"is {results['engine']['layer_major_of_shares']:.2f} of it" in page
    drafts = {(row["prompts"], row["rows"], row["depth"]): row["times plain"] for row in results["speculation"]["rows"]}
    for kind, rows in product(("copying", "editing", "ordinary"), (1, 4)):
        both = drafts[kind, rows, "lossless"], drafts[kind, rows, "lossless:lookup"]
        assert f"| {kind} | {rows} | {both[0]:.2f}x | {both[1]:.2f}x |" in page
    larger = json.loads((ROOT / "benchmarks/results/speculation-qwen2.5-coder-1.5b.json").read_text())["rows"]
    gains = {(row["prompts"], row["rows"]): f"{row['times plain']:.2f}x" for row in larger}
    for kind in ("copying", "editing", "ordinary"):
        assert f"| {kind} | {gains[kind, 1]} | {gains[kind, 4]} |" in page
    forecast = json.loads((ROOT / "benchmarks/results/forecast.json").read_text())["rows"]
    shares = [row["of the forecast"] for row in forecast]
    assert f"is {min(shares):.2f} to {max(shares):.2f} times the forecast's" in page
    assert f"the best is {max(row['measured'] for row in forecast):.2f}x" in page
    assert f"{whole['curve_sec']:.2f} s, {whole['ratio']:.0f} times less than a plain dynamic programme" in demo


def test_the_peers_are_those_of_their_rows() -> None:
    document = json.loads((ROOT / "benchmarks/results/peers.json").read_text())
    page = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = {(row["peer"], row["rows"]): row for row in document["rows"]}
    for title, name in PEERS_BY_SPEED.items():
        cells = [title]
        for rows_at_once in document["settings"]["rows"]:
            row = rows.get((name, rows_at_once))
            cells += (
                ["", ""] if row is None else [f"{row['tokens_per_sec']['p50']:.0f}", f"{row['over_reference']['p50']:.2f}x"]
            )
        layers = document["layers_per_token"].get(name)
        assert [*cells, "" if layers is None else f"{layers:.0f}"] in map(cells_of, page.splitlines()), title
    for title, (name, scored_as) in PEERS_BY_QUALITY.items():
        scores = document["quality"][scored_as]
        cells = [title, *(f"{rows[name, rows_at_once]['ms_in_turns']:.1f}" for rows_at_once in (1, 32))]
        for metric in ("kl", "agreement", "bits_per_byte", "rouge_l"):
            score = scores[metric]
            cells.append("" if score is None else "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**score))
        assert cells in map(cells_of, page.splitlines()), title


def test_the_load_on_the_server_is_that_of_its_rows() -> None:
    document = json.loads((ROOT / "benchmarks/results/load_server.json").read_text())
    found = {row["what"]: row["value"] for row in document["rows"]}
    words = re.sub(r"\s+", " ", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))
    assert found["failures"] == found["texts that differ"] == found["reasons that differ"] == 0
    assert found["left"] == found["cancelled in the engine"]
    share = found["tokens/s, of the engine's"]
    assert f"{found['requests']:,} requests of the `openai` client, {document['settings']['at_once']} at a time" in words
    assert f"{found['malformed']} malformed and {found['left']} left by their client" in words
    assert f"gave {share:.2f} of the tokens per second" in words
    assert f"was {found['memory, last quarter over second']:.3f} times" in words


def test_the_sweeps_on_ray_are_those_of_their_rows() -> None:
    words = re.sub(r"\s+", " ", (ROOT / "docs" / "scale.md").read_text(encoding="utf-8"))
    runs = json.loads((ROOT / "benchmarks/results/ray-faults.json").read_text())["runs"]
    assert all(run["equal"] and not run["lost"] and not run["doubled"] for run in runs)
    assert f"In none of the {len(runs)} sweeps" in words
    document = json.loads((ROOT / "benchmarks/results/ray-overhead.json").read_text())
    ratios = [f"{ratio:.2f}" for ratio in document["ratios"]]
    assert f"A unit took {' and '.join(ratios)} of the local time" in words
    assert f"the whole command took {document['rows'][-1]['sec in all']:.2f} of it" in words
    assert f"{document['settings']['processes']} processes of one thread" in words


def test_no_committed_row_of_a_data_set_holds_text() -> None:
    for path in (ROOT / "experiments" / "similarity").rglob("rows.parquet"):
        assert not {"answer", "reference", "prompt"} & set(pq.read_schema(path).names)


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_elastic_adapters_table_is_that_of_its_rows() -> None:
    document = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    frames = {w: pq.read_table(ROOT / f"experiments/elastic/{w}/rows.parquet").to_pandas() for w in ("untouched", "elastic")}
    by_depth = {w: frame.groupby("layers_run")[["kl", "agreement", "nll"]].mean() for w, frame in frames.items()}
    full_nll = by_depth["untouched"].nll[30]
    for layers in (30, 27, 24, 20, 15, 12):
        line = next(line for line in document.splitlines() if line.startswith(f"| {layers} | ") and line.count("|") == 7)
        cells = cells_of(line)
        said = [cells[1], cells[2].split(" ")[0], cells[3], cells[4].split(" ")[0], cells[5]]
        untouched, elastic = by_depth["untouched"].loc[layers], by_depth["elastic"].loc[layers]
        expected = [untouched.kl, elastic.kl, untouched.agreement, elastic.agreement]
        assert said == [*(f"{value:.3f}" for value in expected), f"{elastic.nll / full_nll - 1:+.1%}"]


def test_what_more_tokens_gave_is_that_of_both_adapters_rows() -> None:
    document = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    section = document[document.index("### More tokens") :]
    before, now = (pq.read_table(ROOT / f"experiments/elastic/{w}/rows.parquet").to_pandas() for w in ("shorter", "elastic"))
    for layers in (30, 27, 24, 20, 15):
        line = next(line for line in section.splitlines() if line.startswith(f"| {layers} | "))
        one, two = (frame[frame.layers_run == layers].set_index("sequence_id") for frame in (before, now))
        gained = mean_interval((two.agreement - one.agreement.loc[two.index]).to_numpy())
        means = [one.kl.mean(), two.kl.mean(), one.agreement.mean(), two.agreement.mean()]
        assert cells_of(line)[1:] == [*(f"{mean:.3f}" for mean in means), str(gained)]
    record = json.loads((ROOT / "experiments" / "elastic" / "training.json").read_text())
    assert f"{record['response_tokens']:,} response tokens ({record['steps']:,} steps" in document
    minutes = round(record["train_sec"] / 60)
    assert f"in {minutes // 60} h {minutes % 60} min" in document
    share = record["response_tokens_by_route"]["full"] / record["response_tokens"]
    assert f"it had {share:.0%} of the tokens" in document
    at_24, at_15 = (
        sum(step[f"loss/greedy-kl:{n}"] for step in record["history"][-10:]) / 10 for n in (24, 15)
    )  # a line for ten steps each
    assert f"was {at_24:.2f} at 24 layers and {at_15:.2f} at 15" in " ".join(document.split())


def test_what_other_instructions_gave_is_that_of_both_adapters_rows() -> None:
    document = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    section = document[document.index("### Other instructions") : document.index("### Twenty answers")]
    folders = ("untouched", "elastic", "own")
    frames = [pq.read_table(ROOT / f"experiments/elastic/{name}/rows.parquet").to_pandas() for name in folders]
    untouched, before, now = (frame.set_index(["layers_run", "sequence_id"]).sort_index() for frame in frames)
    full_nll = untouched.nll.loc[30].mean()
    for layers in (30, 27, 24, 20, 15, 12):
        line = next(line for line in section.splitlines() if line.startswith(f"| {layers} | "))
        one, two = before.loc[layers], now.loc[layers]
        gained = [str(mean_interval((two[name] - one[name]).to_numpy())) for name in ("kl", "agreement")]
        nll = [f"{frame.nll.mean() / full_nll - 1:+.1%}" for frame in (one, two)]
        assert cells_of(line)[1:] == [f"{one.kl.mean():.3f}", f"{two.kl.mean():.3f}", *gained, *nll]
    words = " ".join(section.split())
    assert f"({before.loc[24].agreement.mean():.3f} to {now.loc[24].agreement.mean():.3f})" in words
    record = json.loads((ROOT / "experiments" / "elastic" / "own" / "training.json").read_text())
    n_rows, speed = record["steps"] * record["settings"]["batch_size"], record["response_tokens"] / record["train_sec"]
    first = record["history"][0]
    for told in (
        f"{record['response_tokens']:,} response tokens, {n_rows} rows",
        f"KL was {first['loss/greedy-kl:24']:.2f} at 24 layers and {first['loss/greedy-kl:15']:.2f} at 15",
        f"train {speed:.0f} a second",
    ):
        assert told in words
    card = json.loads((ROOT / "src/depthdial/adapters/smollm2-135m-elastic/depthdial.json").read_text())
    assert record["started_from"]["response_tokens"] == card["training"]["response_tokens"]


def test_the_answers_that_are_quoted_are_those_of_the_adapter() -> None:
    document = re.sub(r"\s+", " ", (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8"))
    rows = json.loads((ROOT / "experiments" / "elastic" / "answers.json").read_text())["rows"]
    quoted = [row for row in rows if f"> **{row['prompt']}** {' '.join(row['answers']['15'].split())}" in document]
    assert (len(rows), len(quoted)) == (20, 5)
    told = (ROOT / "experiments" / "elastic" / "answers.md").read_text(encoding="utf-8")
    for layers, words in ((24, "3 of 20 fall into a loop"), (15, "(5 loops)"), (12, "(9 loops)")):
        assert words in document and f"{re.findall(r'[0-9]+', words)[0]} with {layers} layers" in told


def test_figure_2_on_two_cores_is_that_of_its_rows() -> None:
    document = (ROOT / "docs" / "figure2.md").read_text(encoding="utf-8")
    folder = ROOT / "experiments" / "figure2" / "alpaca"
    rows = pq.read_table(folder / "rows.parquet").to_pandas()
    means = rows.groupby(["weights", "layers_run"]).rouge_l.mean()
    for layers in (4, 8, 12, 16, 20, 24):
        line = next(line for line in document.splitlines() if line.startswith(f"| {layers} | 0.0") and line.count("|") == 7)
        said = [cell.split(" ")[0] for cell in cells_of(line)[1:5]]
        assert said == [f"{means[kind, layers]:.3f}" for kind in ("untouched", "specialist", "elastic", "elastic_compute")]
    curve = OracleCurve.from_dict(json.loads((folder / "oracle.json").read_text())["specialist"])
    assert curve.matches_full_at is not None and curve.matches_full_interval is not None
    low, high = curve.matches_full_interval
    assert f"equals T with {curve.matches_full_at:.1f} [{low:.1f}, {high:.1f}] of 30 layers" in document
    predictable = PredictableCurve.from_dict(json.loads((folder / "predictable.json").read_text())["specialist"])
    of_specialists = rows[rows.weights == "specialist"]
    for steps in ("own", "full"):
        by_steps = oracle(of_specialists, steps=steps, n_permutations=0)
        assert by_steps.cost == "layer_steps" and by_steps.matches_full_interval is not None
        told = [f"{100 * number:.1f}" for number in (by_steps.matches_full_at, *by_steps.matches_full_interval)]
        assert f"at {told[0]}% [{told[1]}, {told[2]}]" in document.replace("\n  ", " ")
    half = next(row for row in predictable.table() if row["point"] == "50%")
    words = re.sub(r"\s+", " ", document)
    assert f"chose on, {half['plug_in']:.3f}; the predictable one, paid others, {half['predictable']:.3f}" in words
    assert f"the static mixture {half['mixture']:.3f}; the full model {half['full']:.3f}" in words


def bracketed(at: float | None, low: float | None, high: float | None, decimals: int = 1) -> str:
    ends = ["never" if end is None else f"{end:.{decimals}f}" for end in (at, low, high)]
    return ends[0] if low is None else f"{ends[0]} [{ends[1]}, {ends[2]}]"


def test_figure_2_on_the_h200_is_that_of_its_rows() -> None:
    page = (ROOT / "docs" / "figure2.md").read_text(encoding="utf-8")
    words, folder = re.sub(r"\s+", " ", page), ROOT / "experiments" / "figure2" / "alpaca-h200"
    # A test of the experiment holds this file against the rows.
    told, small = (json.loads((path / "table.json").read_text()) for path in (folder, folder.parent / "alpaca"))
    about, scores = told["about"], {row["layers"]: row for row in told["rouge_l_by_cost"]}

    for layers, row in scores.items():
        cells = [f"{row[kind]['mean']:.3f} [{row[kind]['low']:.3f}, {row[kind]['high']:.3f}]" for kind in KINDS_OF_FIGURE_2]
        assert f"| {layers} | {' | '.join(cells)} |" in page
        assert {row[kind]["n"] for kind in KINDS_OF_FIGURE_2} == {about["test_rows"]}
    star = {row["weights"]: row for row in told["oracle_matches_full"]}
    ours, untouched = star["specialist"], star["untouched"]
    in_layers = {kind: bracketed(row["matches_full_at_layers"], row["low"], row["high"]) for kind, row in star.items()}
    shares = [100 * ours[name] / 30 for name in ("matches_full_at_layers", "low", "high")]
    shuffled = ours["shuffled_matches_full_at_layers"]
    assert f"**{in_layers['specialist']} of 30 layers ({shares[0]:.1f}% [{shares[1]:.1f}, {shares[2]:.1f}])**" in words
    assert f"with {shares[0]:.1f}% [{shares[1]:.1f}, {shares[2]:.1f}] of the layers" in re.sub(r"\s+", " ", README)
    assert f"| greedy | untouched weights | {in_layers['untouched']} | {100 * untouched['share_of_full']:.1f} |" in page
    assert f"| greedy | specialists, as in the paper | {in_layers['specialist']} | {shares[0]:.1f} |" in page
    assert f"shuffled within each route | {shuffled:.1f} | {100 * shuffled / 30:.1f} |" in page
    assert f"the star is at {100 * shuffled / 30:.1f}%" in words and f"the star is at {shuffled:.1f} layers" in words
    sampled = {row["chosen_on"]: row for row in told["sampled_matches_full"]}
    for k, row in sampled.items():
        same, others = row["paid_the_same_at_layers"], row["paid_the_others_at_layers"]
        if k in (1, 8):
            paid = "paid that one" if k == 1 else "paid those"
            assert f"{k} sample{'s' * (k > 1)}, {paid} | {same:.1f} | {100 * same / 30:.1f} |" in page
        if row["is_held_out"]:
            cells = f"{bracketed(others, row['low'], row['high'])} | {'–' if others is None else f'{100 * others / 30:.1f}'}"
            assert f"| chosen on {k} sample{'s' * (k > 1)}, paid the others | {cells} |" in page
    claimed, paid = sampled[8]["paid_the_same_at_layers"], sampled[4]["paid_the_others_at_layers"]
    assert f"claims ({claimed:.1f} layers)" in words and f"by the others ({paid:.1f})" in words
    assert f"those it chose on needs {100 * paid / 30:.1f}%" in words

    assert f"at most {about['max_new_tokens']} tokens to each of {about['test_rows']} test rows" in words
    assert f"{about['samples']} answers at temperature {about['temperature']} to the first {about['sampled_rows']}" in words
    assert f"mean over {about['shuffles']} shuffles" in words and f"seed {about['seed']}, on one NVIDIA H200" in words
    assert about["hardware"].endswith("NVIDIA H200") and f"(commit {about['commit']}, torch 2.11.0" in words
    half = next(row for row in told["predictable"]["specialist"] if row["point"] == "50%")
    assert f"where T scores {half['full']:.3f}." in words
    low, high = half["predictable_low"], half["predictable_high"]
    assert f"chose on, {half['predictable']:.3f} [{low:.3f}, {high:.3f}] paid the others" in words.replace(
        f"{half['plug_in']:.3f} paid the one sample that it chose on", "chose on"
    )
    assert f"static mixture {half['mixture']:.3f}, T {half['full']:.3f}" in words
    gain = (half["predictable"] - half["mixture"]) / (half["plug_in"] - half["mixture"])
    assert f"So {gain:.0%} of the gain over the mixture was predictable" in words

    offered = {row["routes"]: row for row in told["stars_by_routes_offered"]}
    two, four, eight, twelve = (f"{100 * offered[n]['mean'] / 30:.1f}%" for n in (2, 4, 8, 12))
    assert f"from {two} with 2 routes to {four} with 4, {eight} with 8 and {twelve} with all 12" in words
    assert ", ".join(f"{100 * offered[n]['shuffled_mean'] / 30:.1f}%" for n in (2, 4, 8, 12)) in words
    there = {row["layers"]: row for row in told["shares_at_the_star"]}
    assert (
        f"({sum(there[n]['share'] for n in (2, 4, 5)):.1%}) run 2 to 5 layers and {there[30]['share']:.1%} all 30" in words
    )
    assert f"score {there[2]['rouge_l_there']:.3f} there, and {there[2]['rouge_l_of_T_there']:.3f} with T" in words
    deep = there[20]
    assert f"{deep['rouge_l_there']:.3f} against {deep['rouge_l_of_T_there']:.3f} on the {deep['share']:.1%} at 20" in words

    rows = pq.read_table(folder / "rows.parquet")
    rows = rows.filter(pc.field("weights") == "specialist")
    for steps in ("own", "full"):
        curve = oracle(rows, steps=steps, n_permutations=0)
        assert curve.matches_full_at is not None and curve.matches_full_interval is not None
        assert f"at {bracketed(100 * curve.matches_full_at, None, None)}% [" in words
        low, high = (100 * end for end in curve.matches_full_interval)
        assert f"{100 * curve.matches_full_at:.1f}% [{low:.1f}, {high:.1f}]" in words
    middle = rows.filter(pc.field("layers_run") == 15)
    empty = sum(text == EMPTY_ANSWER for text in middle["answer_hash"].to_pylist()) / len(middle)
    assert f"{empty:.1%} of the 15-layer specialist's answers are empty" in words
    lost = 1 - scores[25]["specialist"]["mean"] / scores[30]["specialist"]["mean"]
    assert f"25 of 30 layers lose {lost:.0%} of its ROUGE-L" in words

    few = pq.read_table(folder.parent / "alpaca" / "rows.parquet")["sequence_id"].unique()
    alike = pc.field("sequence_id").isin(few) & pc.field("layers_run").isin([4.0, 8.0, 12.0, 15.0, 20.0, 25.0, 30.0])
    curve = oracle(rows.filter(alike), cost="layers", n_permutations=0)
    assert curve.matches_full_at is not None and curve.matches_full_interval is not None
    share, before = curve.matches_full_at / 30, small["oracle_matches_full"][1]
    assert f"at {bracketed(curve.matches_full_at, *curve.matches_full_interval)} layers ({share:.1%})" in words
    assert before["weights"] == "specialist"
    way = (before["share_of_full"] - share) / (before["share_of_full"] - ours["share_of_full"])
    assert f"account for {way:.0%} of the way from {before['share_of_full']:.1%} to {ours['share_of_full']:.1%}" in words
    old = bracketed(before["matches_full_at_layers"], before["low"], before["high"])
    assert f"| star of the specialists, layers | {old} | {in_layers['specialist']} |" in page
    assert f"scores shuffled | {before['shuffled_matches_full_at_layers']:.1f} | {shuffled:.1f} |" in page
    trained = [{row["weights"]: row for row in one["training"]} for one in (small, told)]
    tokens = [one["T"]["tokens_per_route"] for one in trained]
    assert f"| response tokens for each route | {tokens[0]:,} | {tokens[1]:,} |" in page
    assert f"training ({tokens[1] / tokens[0]:.0f} times the tokens" in words
    seconds = [row["train_sec"] for name, row in trained[1].items() if name.startswith("uls-")]
    assert f"{trained[1]['T']['train_sec']:.0f} s for T and {min(seconds):.0f} to {max(seconds):.0f} s for" in words


def test_no_row_of_figure_2_or_the_adapter_holds_text() -> None:
    for folder in ("figure2", "elastic"):
        for path in (ROOT / "experiments" / folder).rglob("*.parquet"):
            table = pq.read_table(path)
            assert not {"reference", "prompt"} & set(table.column_names)
            assert "answer" not in table.column_names or table.column("answer").null_count == table.num_rows
