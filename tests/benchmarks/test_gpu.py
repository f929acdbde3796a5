"""The benchmark for a GPU: what fails or takes too long leaves the rest alone, and a stopped run goes on."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import gpu
from depthdial.engine import graphs
from tests.engine.recorded_ops import CpuRecorder

TINY = ["--device", "cpu", "--tiny"]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.fixture
def calls(monkeypatch):
    """Parts that are no measurements: one that fails, one that does not end, one that has a result."""
    seen = []

    def fails(run):
        seen.append("steps")
        raise RuntimeError("no such kernel")

    def lasts(run):
        seen.append("sizes")
        run.add("sizes", "half", ms=1.0)
        for _ in range(500):
            time.sleep(0.01)

    def works(run):
        seen.append("rows")
        run.add("rows", "all", ms=2.0, ratio=float("nan"))

    def machine(run):
        seen.append("machine")
        run.add("machine", "bandwidth", bytes_per_sec=1e9)

    monkeypatch.setattr(gpu, "_PARTS", {"machine": machine, "steps": fails, "sizes": lasts, "rows": works})
    monkeypatch.setattr(gpu, "_SHARES", {"machine": 0.1, "steps": 0.1, "sizes": 0.1, "rows": 0.7})
    return seen


def test_a_part_that_fails_or_does_not_end_leaves_the_others_alone(tmp_path, calls, capsys):
    gpu.main(["--out", str(tmp_path), *TINY, "--minutes", "0.05"])
    rows = rows_of(tmp_path)
    assert [(row["part"], row["what"]) for row in rows] == [
        ("machine", "bandwidth"),
        ("machine", "finished"),
        ("steps", "failed"),
        ("sizes", "half"),
        ("sizes", "out of time"),
        ("rows", "all"),
        ("rows", "finished"),
    ]
    assert rows[2]["error"] == "RuntimeError: no such kernel"
    assert rows[5]["ratio"] is None
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows


def test_a_stopped_run_goes_on_with_the_parts_that_are_not_whole(tmp_path, calls, monkeypatch):
    gpu.main(["--out", str(tmp_path), *TINY, "--minutes", "0.05"])
    with (tmp_path / "gpu.jsonl").open("a") as lines:
        lines.write('{"part": "rows", "wh')  # killed in the middle
    calls.clear()
    monkeypatch.setitem(gpu._PARTS, "steps", lambda run: run.add("steps", "now", ms=run.bandwidth))
    gpu.main(["--out", str(tmp_path), *TINY, "--minutes", "0.05", "--parts", "steps,rows"])
    assert calls == []
    assert [row["what"] for row in rows_of(tmp_path) if row["part"] == "steps"] == ["now", "finished"]
    assert len([row for row in rows_of(tmp_path) if row["part"] == "rows"]) == 2
    # Results of other settings are not taken over.
    gpu.main(["--out", str(tmp_path), *TINY, "--minutes", "0.05", "--model", "other", "--parts", "rows"])
    assert calls == ["machine", "rows"]


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        gpu.main(["--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("No CUDA device is there: run this on a machine with a GPU")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--parts", "speed"), "The part 'speed' is unknown: use machine, steps,"),
        (("--device", "gpu"), "The device 'gpu' is unknown: use cuda or cpu."),
        (("--minutes", "0"), "The limit of 0 minutes leaves no time: give more"),
        (("--out", __file__), "which is a file: choose another --out."),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, capsys, given, told):
    with pytest.raises(SystemExit) as left:
        gpu.main(["--out", str(tmp_path), *TINY, *given])
    said = capsys.readouterr().err
    assert left.value.code == 2 and told in said and len(said.splitlines()) == 1


def test_steps_through_graphs_and_without_have_equal_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "recorder_for", lambda device: CpuRecorder())
    gpu.main(["--out", str(tmp_path), *TINY, "--parts", "steps"])
    rows = {row["what"]: row for row in rows_of(tmp_path)}
    assert rows["warm-up"]["recorded"] == 4  # a front, all layers, half of them, a tail
    assert rows["equal tokens, graphs and not, torch.float32"]["share"] == 1.0
    assert all(row.get("why_no_graphs") is None for row in rows.values())
    assert {"transformers generate", "graphs, loop", "layer by layer, pass", "half the layers of all, loop"} <= rows.keys()


@pytest.mark.slow
def test_all_parts_on_tiny_models(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "recorder_for", lambda device: CpuRecorder())
    gpu.main(["--out", str(tmp_path), *TINY])
    finished = [row["part"] for row in rows_of(tmp_path) if row["what"] == "finished"]
    assert finished == list(gpu._SHARES)
    assert all(row.get("why_no_graphs") is None for row in rows_of(tmp_path))
    assert all(row["equal"] == 1.0 for row in rows_of(tmp_path) if row["part"] == "drafts" and "equal" in row)
