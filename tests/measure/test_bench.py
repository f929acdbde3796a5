"""A bench: what it measures, that it goes on where it was stopped, that it leaves the model alone, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from unittest import mock

import pytest

from depthdial.errors import InputError
from depthdial.latency.model import LatencyModel
from depthdial.measure import bench as module
from depthdial.measure.bench import BenchSettings, bench
from depthdial.measure.ceilings import measure_ceilings
from depthdial.measure.cost import model_cost
from depthdial.routes import Route
from tests.tiny import tiny

SMALL = BenchSettings(rows=(1, 2), context=(8, 16), prompts=(4, 8), drafts=(1, 2), rounds=2, steps=2)


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch):
    monkeypatch.setattr(module, "measure_ceilings", lambda *size: measure_ceilings(*size, rounds=1, scale=1 / 1024))


def test_every_cell_is_measured_and_the_model_is_left_alone(model, tokenizer, tmp_path, weights_of, assert_same):
    before = weights_of(model)
    latency = bench(model, tokenizer, settings=SMALL, out=tmp_path)
    assert_same(before, weights_of(model))
    kinds = Counter(cell.kind for cell in latency.cells)
    # 4 routes at 2 x 2 sizes; checks of 2 and 3 tokens and prompts of 4 and 8 at two depths.
    assert kinds == {"step": 16, "hf_step": 4, "hf_prefill": 4, "verify": 8, "prefill": 8}
    assert {cell.count for cell in latency.cells if cell.kind == "step"} == {4}
    assert {cell.tokens for cell in latency.cells if cell.kind == "verify"} == {2, 3}
    assert list(latency.routes) == ["full", "uls:5", "uls:3", "uls:2"]
    cost = model_cost(model)
    assert latency.sizes.head_flops == cost.head_flops_per_token and latency.layer_share == (1.0,) * 6
    assert latency.sizes.layer_bytes == tuple(layer.weight_bytes for layer in cost.layers)
    assert latency.dtype == "float32" and latency.hardware and latency.date and latency.threads
    assert latency.route_sec(Route((0, 2), 6)) > 0 and latency.verify_sec(2, 4) > 0 and latency.prefill_sec(1, 6) > 0
    assert LatencyModel.load(tmp_path) == latency


def test_a_stopped_bench_goes_on(model, tokenizer, tmp_path):
    class StopError(Exception):
        pass

    def stop_at(n):
        calls = []
        real = module.write_json

        def write(path, value):
            calls.append(path)
            if len(calls) > n:
                raise StopError
            return real(path, value)

        return write

    with mock.patch.object(module, "write_json", stop_at(3)), pytest.raises(StopError):
        bench(model, tokenizer, settings=SMALL, out=tmp_path)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert set(kept) == {"ceilings.json", "layers.json", "step-1x8.json"} and not (tmp_path / "bench.json").exists()
    latency = bench(model, tokenizer, settings=SMALL, out=tmp_path)
    assert {name: (tmp_path / "cells" / name).read_bytes() for name in kept} == kept
    step = json.loads(kept["step-1x8.json"])[0]
    assert step["p50_sec"] in [cell.p50_sec for cell in latency.cells if cell.kind == "step"]
    with mock.patch.object(module, "step_secs", side_effect=AssertionError):  # all is there
        assert bench(model, tokenizer, settings=SMALL, out=tmp_path) == latency


def test_another_bench_has_another_folder(model, tokenizer, tmp_path):
    bench(model, tokenizer, settings=SMALL, out=tmp_path)
    other = BenchSettings(**{**vars(SMALL), "rounds": 3})
    with pytest.raises(InputError, match="holds a bench with another rounds"):
        bench(model, tokenizer, settings=other, out=tmp_path)


def test_long_prompts_of_many_rows_and_the_baseline_are_left_out(model, tokenizer):
    settings = BenchSettings(**{**vars(SMALL), "most_tokens": 16, "baseline": False, "depths": ("uls:50%",)})
    latency = bench(model, tokenizer, settings=settings)
    sizes = {(cell.kind, cell.rows, cell.tokens, cell.context_tokens) for cell in latency.cells}
    assert ("step", 1, 1, 16) in sizes and ("step", 2, 1, 16) not in sizes and ("step", 2, 1, 8) in sizes
    assert ("prefill", 2, 8, 0) in sizes and not any(kind.startswith("hf") for kind, *_ in sizes)
    assert list(latency.routes) == ["full", "uls:3"]


def test_unlike_layers_have_unlike_shares(tokenizer):
    model = tiny("qwen3_moe_sparse").eval()  # experts in two of the layers
    settings = BenchSettings(**{**vars(SMALL), "baseline": False, "rows": (1,), "context": (8,), "prompts": (4,)})
    latency = bench(model, tokenizer, settings=settings)
    share = latency.layer_share
    assert sum(share) == pytest.approx(6)
    assert len(set(share)) == 2 and share[1] == share[5] and share[0] == share[2] == share[3] == share[4]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": (0,)}, "Invalid rows 0"),
        ({"rows": ()}, "The argument rows of a bench is empty"),
        ({"drafts": (0,)}, "Invalid drafts 0"),
        ({"rounds": 0}, "Invalid rounds 0"),
        ({"rows": "1"}, "Invalid rows '1': use a whole number"),
        ({"rows": None}, "Invalid rows None"),
        ({"depths": (Route((0, 1), 6),)}, "The depths of a bench are texts such as 'uls:50%'"),
        ({"depths": None}, "The depths of a bench are texts"),
        ({"depths": ("full",)}, "All depths of this bench run every layer"),
        ({"depths": ("rls:3@0",)}, "'rls:3@0' is no fixed route"),
        ({"depths": ("uls:9",)}, "9"),
        ({"context": (500,)}, "The bench runs sequences of 503 tokens, and the model was made for 128"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(model, tokenizer, changes, told):
    with pytest.raises(InputError, match=told) as caught:
        bench(model, tokenizer, settings=BenchSettings(**{**vars(SMALL), **changes}))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_one_number_stands_for_itself():
    assert BenchSettings(rows=4, depths="uls:50%") == BenchSettings(rows=(4,), depths=("uls:50%",))


@pytest.mark.parametrize("unit", ["ceilings", "layers", "step-1x8", "verify-2", "prefill-1x4"])
@pytest.mark.parametrize("text", ["{", "{}", "[1]", "null"])
def test_a_damaged_cell_is_told_in_a_sentence(model, tokenizer, tmp_path, unit, text):
    settings = BenchSettings(**{**vars(SMALL), "context": (8,), "rounds": 1, "steps": 1})
    bench(model, tokenizer, settings=settings, out=tmp_path)
    (tmp_path / "cells" / f"{unit}.json").write_text(text)
    with pytest.raises(InputError) as caught:
        bench(model, tokenizer, settings=settings, out=tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_option_is_refused(model, tokenizer):
    with pytest.raises(TypeError, match="unexpected keyword argument 'rows'"):
        bench(model, tokenizer, rows=(1,))
