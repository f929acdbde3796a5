"""The figure of a bench shows its cells and the bandwidth line."""

from __future__ import annotations

import numpy as np

from depthdial.report.bench.plot import draw_latency
from tests.latencies import affine, make_latency
from tests.report.bench.folders import with_baseline


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_time_against_layers_and_throughput_against_rows():
    left, right = draw_latency(with_baseline()).axes
    bandwidth = lines_of(left)["bytes at 10 GB/s"]
    np.testing.assert_allclose(bandwidth.get_xydata(), [(0, 1e3 * 5e5 / 1e10), (6, 1e3 * 6.5e6 / 1e10)])
    assert lines_of(left)["HF generate"].get_ydata() == [2e3 * affine(6, 1, 1, 16)]
    told = [text.get_text() for text in left.get_legend().get_texts()]
    assert "16 tokens in sight" in told and "64 tokens in sight" in told
    full = lines_of(right)["full (6)"]
    np.testing.assert_allclose(full.get_xydata(), [(n, n / affine(6, n, 1, 16)) for n in (1, 2, 8)])
    assert {"uls:3", "ceilings, all layers", "HF generate"} <= lines_of(right).keys()


def test_without_a_baseline():
    left, right = draw_latency(make_latency()).axes
    assert "HF generate" not in {*lines_of(left), *lines_of(right)}
