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

    for name in ("rouge-cost", "stars", "routes-offered", "oracle", "oracle-elastic", "predictable", "predictable-elastic"):
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


def numbers_of(document: Any, name: str = "") -> dict[str, Any]:
    """Every number and text of a JSON document by its place."""
    parts = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else None
    if parts is None:
        return {name: document}
    return {place: value for key, part in parts for place, value in numbers_of(part, f"{name}/{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alpaca-h200", "alpaca"])
def test_a_committed_run_is_published_again_from_its_rows_alone(script, tmp_path, name) -> None:
    out = tmp_path / "again"
    assert script.main(["--from-rows", str(HERE / name), "--out", str(out)]) == 0
    for file in ("table.json", "oracle.json", "predictable.json"):
        told, again = (numbers_of(json.loads((folder / file).read_text())) for folder in (HERE / name, out))
        assert told.keys() == again.keys()
        is_number = {key: isinstance(value, float | int) and value == value for key, value in told.items()}
        assert [told[key] for key in told if is_number[key]] == pytest.approx([again[key] for key in told if is_number[key]])
        assert {key: told[key] for key in told if not is_number[key]} == {
            key: again[key] for key in told if not is_number[key]
        }
    assert {path.name for path in (out / "figures").iterdir()} == {path.name for path in (HERE / name / "figures").iterdir()}
    assert (out / "table.md").read_text() == (HERE / name / "table.md").read_text()


def test_the_settings_of_a_committed_run_are_those_that_come_with_it(script) -> None:
    from reproduction.folder import read_folder

    for settings, folder in (("smollm2-alpaca-h200.json", "alpaca-h200"), ("smollm2-alpaca-cpu.json", "alpaca")):
        assert read_folder(HERE / folder).settings == script.read_settings(HERE / settings)


def test_only_rows_of_elastic_weights_may_be_missing(script, tmp_path, capsys) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(HERE / "alpaca", out, ignore=shutil.ignore_patterns("*.png"))
    rows = pq.read_table(out / "rows.parquet")
    for gone, expected in (
        (pc.equal(rows["weights"], "specialist"), "has no rows of the specialists"),
        (pc.and_(pc.equal(rows["weights"], "elastic"), pc.equal(rows["route"], "uls:8")), "rows of elastic in"),
    ):
        pq.write_table(rows.filter(pc.invert(gone)), out / "rows.parquet")
        assert script.main(["--from-rows", str(out)]) == 2
        assert expected in capsys.readouterr().err
    pq.write_table(rows.filter(pc.not_equal(rows["weights"], "elastic")), out / "rows.parquet")
    (out / "training" / "elastic.json").unlink()

    from reproduction.folder import read_folder
    from reproduction.results import document, gather
    from reproduction.tables import page

    results = gather(read_folder(out))
    told, table = document(results), page(results)
    assert list(told["mean_difference_percent"]) == ["elastic_compute"] and "equal tokens" not in table
    assert {row["weights"] for row in told["oracle_matches_full"]} == {"untouched", "specialist", "elastic_compute"}


def test_the_star_by_routes_offered_is_that_of_the_oracle(script) -> None:
    from reproduction.offered import stars_by_routes_offered
    from reproduction.results import Scores

    import depthdial as dd

    values, costs = np.random.default_rng(0).random((40, 4)), {"uls:2": 2, "uls:4": 4, "uls:8": 8, "full": 12}
    offered = stars_by_routes_offered(Scores(tuple(costs), values), costs, seed=0)
    assert [(one.routes, one.sets) for one in offered] == [(2, 3), (3, 3), (4, 1)]
    rows = {
        "sequence_id": np.repeat(np.arange(40), 4),
        "route": np.tile(list(costs), 40),
        "layers_run": np.tile(list(costs.values()), 40),
        "rouge_l": values.ravel(),
    }
    for names in (["uls:2", "full"], ["uls:2", "uls:4", "uls:8", "full"]):
        kept = np.isin(rows["route"], names)
        some = {name: column[kept] for name, column in rows.items()}
        star = dd.oracle(some, cost="layers", n_bootstrap=0, n_permutations=0).matches_full_at
        one = offered[len(names) - 2]
        assert one.lowest - 0.3 <= star <= one.highest + 0.3  # straight between breakpoints here, whole layers there
    assert offered[-1].mean == pytest.approx(star, abs=0.3) and offered[0].mean > offered[-1].mean


def test_options_that_do_not_go_together_are_one_sentence(script, tmp_path, capsys) -> None:
    for arguments, expected in (
        ([], "A run needs settings and --out"),
        ([str(HERE / "smollm2-alpaca-cpu.json")], "A run needs settings and --out"),
        (["--from-rows", str(HERE / "alpaca"), "--only", "full"], "takes --out alone"),
        (["--from-rows", str(tmp_path)], "There is no"),
    ):
        assert script.main(arguments) == 2
        said = capsys.readouterr().err.strip()
        assert expected in said and "\n" not in said


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
    from reproduction.experiment import open_experiment

    open_experiment(script.read_settings(place / "settings.json"), place / "data", place / "out")
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


def test_a_folder_whose_settings_are_damaged_is_refused(script, tmp_path, capsys) -> None:
    known = json.loads((HERE / "alpaca" / "figure2.json").read_text(encoding="utf-8"))
    for damaged, told in (
        ([], "does not say which data a run had"),
        ({**known, "n_layers": None}, "Invalid n_layers None"),
        ({name: value for name, value in known.items() if name != "data"}, "does not say which data a run had"),
    ):
        (tmp_path / "figure2.json").write_text(json.dumps(damaged))
        assert script.main(["--from-rows", str(tmp_path)]) == 2
        assert told in capsys.readouterr().err
