"""`gates-study`, `sweep --gates` and the report of a gates study from the command line, on a tiny random model."""

from __future__ import annotations

from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.train.gates.study import GatesStudySettings

STUDY = (
    *("--budgets", "90%", "--seeds", "2", "--other-inputs", "", "--other-budget", "0.9", "--tokens", "20"),
    *("--base-tokens", "0", "--batch-size", "3", "--rank", "2", "--no-controls", "--max-new-tokens", "3"),
    *("--map-sequences", "1", "--fidelity-tokens", "2"),
)
SWEEP = ("--max-new-tokens", "4", "--batch-size", "4", "--limit", "4")


def test_a_study_is_asked_for_with_what_the_line_says(run, paths):
    """With a stub in the study's place; a real one takes longer, and is among the slow tests."""
    rows = pa.table({"controller": ["full"]})
    result = mock.Mock(rows=rows, report=paths / "out" / "report.html")
    with (
        mock.patch("depthdial.studies.gates.gates_study", return_value=result) as study,
        mock.patch("depthdial.report.gates.summary.gather_gates", return_value=["cell"]) as gathered,
        mock.patch("depthdial.report.gates.tables.controllers_table", return_value=[{"controller": "full"}]) as controllers,
        mock.patch("depthdial.report.gates.tables.differences_table", return_value=[{"gap": "-" * 40}]) as differences,
    ):
        status, out, err = run("gates-study", *STUDY, "--limit", "1")
    assert status == 0, err
    assert f"report: {paths / 'out' / 'report.html'}" in out and "ROUGE-L, hidden minus fixed" in out
    asked = study.call_args.kwargs
    assert asked["settings"] == GatesStudySettings(
        **{"budgets": (0.9,), "seeds": 2, "other_inputs": (), "other_budget": 0.9, "tokens": 20, "base_tokens": 0},
        **{"batch_size": 3, "rank": 2, "controls": False, "max_new_tokens": 3, "map_sequences": 1, "fidelity_tokens": 2},
    )
    assert asked["out"] == paths / "out" and asked["name"] == str(paths / "base")
    assert len(asked["task"].examples) == 1 < len(asked["training"].examples)
    gathered.assert_called_once_with(rows)
    controllers.assert_called_once_with(["cell"])
    differences.assert_called_once_with(["cell"])


@pytest.mark.slow
def test_a_study_its_report_and_another_one_in_its_place(run, paths):
    # The figures are drawn once, by the verb for them.
    with mock.patch("depthdial.studies.gates.write_gates_report", lambda folder: folder / "report.html"):
        status, out, err = run("gates-study", *STUDY)
    assert status == 0, err
    assert f"report: {paths / 'out' / 'report.html'}" in out and "ROUGE-L, hidden minus fixed" in out
    rows = pq.read_table(paths / "out" / "rows.parquet").to_pylist()
    assert {(row["controller"], row["target"]) for row in rows} == {("full", None), ("hidden", 0.9), ("fixed", 0.9)}
    assert len(list((paths / "out" / "maps").glob("*.json"))) == 4
    status, out, err = run("report", paths / "out")
    assert status == 0, err
    assert "Does the hidden state help?" in (paths / "out" / "report.html").read_text()
    status, _, err = run("gates-study", *STUDY, "--tokens", "21")
    assert status == 2 and "holds a gates study with another tokens (20 then, 21 now)" in err


@pytest.mark.slow
@pytest.mark.parametrize("and_more", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gates_are_swept_both_ways_beside_routes(run, paths, and_more):
    trained = ("--target", "0.7", "--epochs", "2", "--rank", "2", "--batch-size", "3", "--key-values", "drop")
    status, _, err = run("train-gates", *trained, out="gates")
    assert status == 0, err
    swept = ("sweep", "--gates", paths / "gates", "--routes", "full,uls:4", *SWEEP)
    status, _, err = run(*swept)
    assert status == 2 and "4 of the 4 sequences (such as 'lessons-all-00001') were used to train the gates: take" in err
    status, out, err = run(*swept, "--allow-searched-rows")
    assert status == 0, err
    assert "gates:hidden:sampled" in out
    rows = pq.read_table(paths / "out" / "rows.parquet").to_pylist()
    names = ["full", "uls:4", "gates:hidden:sampled", "gates:hidden:argmax"]
    assert [row["route"] for row in rows] == [name for name in names for _ in range(4)]
    assert all(row["route_layers"].startswith("token-wise:drop:") for row in rows[8:])
    assert all(row["decide_flops"] > 0 for row in rows[8:] if row["new_tokens"] > 1)
    assert rows[0]["kl"] > 0  # the adapter beside the gates is on, and compared with the model without it
    if and_more:
        assert run("report", paths / "out")[0] == 0
        assert run("sweep", "--gates", paths / "gates", *SWEEP, "--allow-searched-rows", out="alone")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--seeds", "1"), "at least 2 seeds, better 5"),
        (("--budgets", "0.9,0.1"), "A target of 0.1 cannot be reached"),
        (("--budgets", "0.9,half"), "takes fractions such as 0.9,0.75 or 90%, not '0.9,half'"),
        (("--budgets", ""), "at least one budget"),
        (("--inputs", "hidden,attention"), "Unknown gate input 'attention'"),
        (("--key-values", "forget"), "Unknown key_values 'forget'"),
        (("--fidelity-tokens", "0"), "Invalid fidelity_tokens"),
        (("--split", "train", "--training-split", "train"), "were used to train the gates"),
    ],
)
def test_a_study_of_bad_input_is_one_sentence_and_status_2(run, paths, arguments, complaint):
    status, _, err = run("gates-study", *STUDY, *arguments)
    assert status == 2
    assert complaint in err and "Traceback" not in err
    assert not (paths / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--routes full,uls:50%, or --gates DIR"),
        (("--gates", "nowhere"), "nowhere holds no gates"),
    ],
)
def test_a_sweep_of_bad_input_is_one_sentence_and_status_2(run, arguments, complaint):
    status, _, err = run("sweep", *arguments)
    assert status == 2
    assert complaint in err and "Traceback" not in err
