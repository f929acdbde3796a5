"""Ceilings of a machine: every way is run in turns, and the fastest by its median counts."""

from __future__ import annotations

import time

import pytest
import torch

from depthdial.measure import ceilings as module
from depthdial.measure.ceilings import measure_ceilings

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_measured(dtype):
    found = measure_ceilings(CPU, dtype, 32, (4, 1, 4), rounds=3, scale=1 / 256)
    assert found.bandwidth_bytes_per_sec > 1e6
    assert found.bandwidth_way in ("sum of floats", "sum of integers", "dot product", "matrix times vector")
    assert [one.rows for one in found.gemm] == [1, 4]
    assert all(one.flops_per_sec > 1e3 and one.way in ("linear", "packed linear") for one in found.gemm)


def test_the_fastest_way_by_its_median_after_a_warm_up():
    calls = []

    def way(name, seconds):
        def call():
            calls.append(name)
            time.sleep(0.05 if len(calls) <= 2 else seconds)

        return call

    rate, name = module._fastest({"slow": (100.0, way("slow", 0.02)), "fast": (100.0, way("fast", 0.005))}, CPU, 3)
    assert name == "fast" and calls == ["slow", "fast"] * 4
    assert 100 / 0.02 < rate <= 100 / 0.005


def test_products_are_told_in_their_flops():
    weights = module._weights(CPU, torch.float32, 16, 1 / 1024)
    assert len(weights) == 2**17 // (64 * 16 * 4) and weights[0].data_ptr() != weights[1].data_ptr()
    for flops, call in module._ways_to_multiply(weights, 3).values():
        assert flops == 2 * 3 * 64 * 16 * len(weights)
        assert all(torch.equal(one, torch.full((3, 64), 16.0)) for one in call())


def test_bytes_that_a_way_reads():
    ways = module._ways_to_read(CPU, torch.float32, 1 / 2**16)
    assert {name: n_bytes for name, (n_bytes, _) in ways.items()} == dict.fromkeys(ways, 2**12)
    assert float(ways["sum of floats"][1]()) == 2**10


def test_a_build_without_packing_still_has_products(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert measure_ceilings(CPU, torch.float32, 16, (2,), rounds=1, scale=1 / 1024).gemm[0].way == "linear"
