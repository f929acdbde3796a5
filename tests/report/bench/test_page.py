"""The page of a bench: complete, self-contained, the same on the same input, and found by the folder."""

from __future__ import annotations

import re

import pytest

from depthdial.errors import InputError
from depthdial.report.bench.page import write_bench_report
from depthdial.report.pages import kind_of, write_report
from tests.report.bench.folders import with_baseline


def test_the_page_holds_everything(tmp_path):
    with_baseline().save(tmp_path / "bench.json")
    assert kind_of(tmp_path) == "bench"
    page = write_report(tmp_path)
    text = page.read_text()
    assert "Decoding steps" in text and "time to the first token" in text and "Memory bandwidth: 10.0 GB/s" in text
    assert text.count("data:image/svg+xml;base64,") == 1
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"latency.png", "latency.svg"}
    assert (tmp_path / "tables" / "steps.csv").read_text().startswith("route,layers,rows,")
    first = page.read_bytes()
    assert write_bench_report(tmp_path).read_bytes() == first


def test_a_folder_without_a_bench(tmp_path):
    with pytest.raises(InputError, match="no latency model file"):
        write_bench_report(tmp_path)
