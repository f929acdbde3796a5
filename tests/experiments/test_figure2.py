"""The reproduction of Figure 2, end to end on a tiny random OPT; a slow test's has 24 layers, as the paper's has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

HERE = Path(__file__).parents[2] / "experiments" / "figure2"
SETTINGS: dict[str, Any] = {
    "task": "alpaca",
    "costs": [6, 12, 24],
    "tokens_per_route": 60,
    "batch_size": 4,
    "full_learning_rate": 0.003,
    "learning_rate": 0.002,
    "train_rows": 16,
    "test_rows": 6,
    "max_prompt_tokens": 64,
    "max_response_tokens": 12,
    "max_new_tokens": 6,
    "eval_batch_size": 8,
    "samples": {"sequences": 4, "samples": 2, "temperature": 0.7},
    "template": "paper",
}


@pytest.fixture
def script(monkeypatch):
    """The modules of the experiment, which lie beside its script."""
    monkeypatch.syspath_prepend(HERE)
    import run

    yield run
    for name in [name for name in sys.modules if name == "run" or name.split(".")[0] == "reproduction"]:
        del sys.modules[name]


@pytest.fixture
def place(tmp_path, tokenizer):
    """A folder with a model, a folder of splits, and settings."""
    save_model(tmp_path, tokenizer, n_layers=24)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, n in (("train", 20), ("test", 8)):
        rows = [{"instruction": draw_words(rng, 4), "input": "", "output": draw_words(rng, 6)} for _ in range(n)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_settings(tmp_path)
    return tmp_path


def save_model(place: Path, tokenizer, n_layers: int) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=128,
        dropout=0.0,
        init_std=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(place / "opt")
    tokenizer.save_pretrained(place / "opt")


def draw_words(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(["the", "cat", "dog", "sat", "ran", "mat"], n))


def write_settings(place: Path, **changed: Any) -> None:
    settings = {"model": str(place / "opt"), **SETTINGS, **changed}
    (place / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if v != "left out"}))


def go(script, place: Path, *more: str) -> int:
    return script.main([str(place / "settings.json"), "--data", str(place / "data"), "--out", str(place / "out"), *more])


def read(place: Path, name: str) -> Any:
    return json.loads((place / "out" / name).read_text())


def rouge_of(rows, weights: str, route: str) -> np.ndarray:
    chosen = rows.filter(pc.and_(pc.equal(rows["weights"], weights), pc.equal(rows["route"], route)))
    by_id = dict(zip(chosen["sequence_id"].to_pylist(), chosen["rouge_l"].to_pylist(), strict=True))
    return np.array([by_id[name] for name in sorted(by_id)])


@pytest.mark.slow
@pytest.mark.parametrize("n_layers", [6, pytest.param(24, marks=pytest.mark.slow)])
def test_the_whole_reproduction_and_its_numbers(script, place, tokenizer, capsys, n_layers) -> None:
    low, high = costs = [n_layers // 4, n_layers // 2]
    routes = [f"uls:{low}", f"uls:{high}", "full"]
    save_model(place, tokenizer, n_layers)
    write_settings(place, costs=[*costs, n_layers])
    assert go(script, place) == 0
    out = place / "out"
    rows, samples = pq.read_table(out / "rows.parquet"), pq.read_table(out / "samples.parquet")

    # One greedy answer of every kind of weights on every route; the samples of what was sampled.
    assert len(rows) == 4 * 3 * 6 and len(samples) == 2 * 3 * 4 * 2
    assert "answer" not in rows.column_names and "answer" not in samples.column_names
    assert set(rows["model"].to_pylist()) >= {str(place / "opt"), f"{place / 'opt'} (T)", f"{place / 'opt'} (uls-{low})"}

    # Tables are those of the rows, by hand.
    table = read(place, "table.json")
    assert [row["layers"] for row in table["rouge_l_by_cost"]] == [*costs, n_layers]
    differences = []
    for row, route in zip(table["rouge_l_by_cost"], routes, strict=True):
        for weights in ("untouched", "specialist", "elastic", "elastic_compute"):
            assert row[weights]["mean"] == pytest.approx(rouge_of(rows, weights, route).mean())
        ours, theirs = (rouge_of(rows, weights, route).mean() for weights in ("elastic", "specialist"))
        assert row["elastic_difference_percent"]["mean"] == pytest.approx(100 * (ours / theirs - 1))
        differences.append(100 * (ours / theirs - 1))
    assert table["mean_difference_percent"]["elastic"]["mean"] == pytest.approx(np.mean(differences[:2]))
    star = next(star for star in table["oracle_matches_full"] if star["weights"] == "specialist")
    assert star["full_rouge_l"] == pytest.approx(rouge_of(rows, "specialist", "full").mean())
    assert star["share_of_full"] == pytest.approx(star["matches_full_at_layers"] / n_layers)
    assert star["reaches_T_at_layers"] == pytest.approx(star["matches_full_at_layers"], abs=1)

    # Equal tokens per route, and equal compute to the nearest step.
    records = {path.stem: json.loads(path.read_text()) for path in (out / "training").glob("*.json")}
    assert set(records) == {"T", f"uls-{low}", f"uls-{high}", "elastic", "elastic_compute"}
    tokens = records[f"uls-{low}"]["response_tokens"]
    assert tokens >= 60 and records[f"uls-{high}"]["response_tokens"] == tokens == records["T"]["response_tokens"]
    assert records["elastic"]["response_tokens_by_route"] == dict.fromkeys(routes, tokens)
    wanted = records[f"uls-{low}"]["train_flops"] + records[f"uls-{high}"]["train_flops"]
    step = max(records[name]["train_flops"] / records[name]["steps"] for name in ("elastic", "elastic_compute"))
    assert records["elastic_compute"]["train_flops"] == pytest.approx(wanted, abs=step)
    assert records["elastic_compute"]["steps"] < records["elastic"]["steps"]

    for name in ("rouge-cost", "oracle", "oracle-elastic", "predictable", "predictable-elastic"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    assert f"| {n_layers} |" in (out / "table.md").read_text()

    # Again: nothing trains, nothing answers, the numbers are the same.
    capsys.readouterr()
    assert go(script, place) == 0
    said = capsys.readouterr().err
    assert "training" not in said and "answers" not in said
    assert read(place, "table.json") == table


@pytest.mark.slow
def test_a_killed_run_goes_on(script, place, tokenizer, monkeypatch, capsys) -> None:
    import depthdial as dd

    save_model(place, tokenizer, n_layers=6)
    write_settings(place, costs=[2, 3, 6])

    trained = []

    def killed(*arguments, **keywords):
        if keywords["routes"] == ("uls:3",):
            raise KeyboardInterrupt
        trained.append(keywords["routes"])
        return finetune(*arguments, **keywords)

    finetune = dd.finetune
    monkeypatch.setattr(dd, "finetune", killed)
    with pytest.raises(KeyboardInterrupt):
        go(script, place, "--only", "full")
        go(script, place, "--only", "specialists")
    assert trained == [("full",), ("uls:2",)]
    monkeypatch.setattr(dd, "finetune", lambda *a, **k: trained.append(k["routes"]) or finetune(*a, **k))
    assert go(script, place, "--only", "specialists") == 0
    assert trained == [("full",), ("uls:2",), ("uls:3",)]
    assert go(script, place, "--only", "results") == 2
    assert "rows.parquet yet: run the same command without --only" in capsys.readouterr().err


@pytest.mark.slow
def test_specialists_that_have_answered_can_leave_the_disk(script, place, tokenizer) -> None:
    save_model(place, tokenizer, n_layers=6)
    write_settings(place, keep_weights=False, costs=[2])
    for step in ("full", "specialists"):
        assert go(script, place, "--only", step) == 0
    weights = place / "out" / "work" / "weights"
    assert [folder.name for folder in weights.iterdir()] == ["T"]
    assert (place / "out" / "training" / "uls-2.json").exists()
    before = (place / "out" / "work" / "answers" / "uls-2" / "rows.parquet").stat().st_mtime_ns
    assert go(script, place, "--only", "specialists") == 0
    assert [folder.name for folder in weights.iterdir()] == ["T"]
    assert (place / "out" / "work" / "answers" / "uls-2" / "rows.parquet").stat().st_mtime_ns == before


def test_differences_are_paired_over_sequences(script) -> None:
    from reproduction.results import Scores, difference

    values = np.random.default_rng(0).random((30, 3))
    specialists = Scores(("uls:6", "uls:12", "full"), values)
    # A tenth better on every sequence is a tenth better in every resample.
    better = difference(Scores(specialists.routes, values * [1.1, 1.3, 1.0]), specialists, seed=0)
    for interval, percent in ((better.by_route["uls:6"], 10), (better.by_route["full"], 0), (better.mean, 20)):
        assert (interval.mean, interval.low, interval.high) == pytest.approx((percent, percent, percent), abs=1e-9)
    # A specialist that says nothing right has no percentage, and the others keep theirs.
    silent = difference(
        Scores(specialists.routes, values * [1.1, 1.3, 1.0]), Scores(specialists.routes, values * [0, 1, 1]), 0
    )
    assert np.isnan(silent.by_route["uls:6"].mean) and silent.mean.mean == pytest.approx(30)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"learning_rat": 1.0}, "unknown setting 'learning_rat'"),
        ({"costs": "left out"}, "lacks the setting costs"),
        ({"costs": [6, 25]}, "costs names 25 layers, but"),
        ({"costs": [0]}, "costs names 0"),
        ({"costs": [24]}, "no cost below the 24 layers"),
        ({"costs": [6, 6]}, "names a cost twice"),
        ({"epochs": 2}, "tokens_per_route or with epochs"),
        ({"samples": {"samples": 3}}, "samples.samples must be even"),
        ({"samples": {"sample": 4}}, "unknown setting 'sample'"),
        ({"learning_rate": -1}, "Invalid learning_rate"),
        ({"batch_size": 2.5}, "Invalid batch_size"),
        ({"seed": -1}, "Invalid seed"),
    ],
)
def test_bad_settings_are_one_sentence(script, place, capsys, changed, expected) -> None:
    write_settings(place, **changed)
    assert go(script, place) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said and "\n" not in said
    assert not (place / "out").exists()


def test_missing_data_and_another_runs_folder_are_refused(script, place, capsys) -> None:
    settings, out = str(place / "settings.json"), str(place / "out")
    assert script.main([settings, "--data", str(place / "nothing"), "--out", out]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    script.open_experiment(script.read_settings(place / "settings.json"), place / "data", place / "out")
    write_settings(place, learning_rate=0.5)
    assert go(script, place) == 2
    assert "holds a run with another learning_rate (0.002 then, 0.5 now)" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_the_settings_that_come_with_it_can_be_used(script, path) -> None:
    settings = script.read_settings(path)
    n_layers = 24 if "opt" in path.name else 30
    assert settings.costs_below(n_layers)[-1] < n_layers
    page = (HERE / "README.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith(f"| `{path.name}`"))
    assert f"| {settings.max_new_tokens} tokens, {settings.test_rows or 'all'} rows |" in line
    assert settings.tokens_per_route is None or f"| {settings.tokens_per_route:,}" in line
    assert settings.costs == "all" or f"| {', '.join(map(str, settings.costs))} |" in line
