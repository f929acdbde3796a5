from __future__ import annotations

import pytest

from depthdial.views import memory

MEMINFO = "MemTotal:       100 kB\nMemAvailable:    40 kB\nHugePages_Total:       0\n"


@pytest.mark.parametrize(
    ("meminfo", "group", "expected"),
    [
        (MEMINFO, {}, 40 * 1024),
        (MEMINFO, {"memory.max": "max\n", "memory.current": "5\n"}, 40 * 1024),
        (MEMINFO, {"memory.max": "9000\n", "memory.current": "5000\n"}, 4000),
        (MEMINFO, {"memory.max": "9000", "memory.current": "5000", "memory.stat": "anon 7\ninactive_file 300\n"}, 4300),
        (MEMINFO, {"memory.max": "9000", "memory.current": "9500"}, 0),
        (None, {"memory.max": "9000", "memory.current": "5000"}, 4000),
        (None, {}, None),
        ("MemTotal: 100 kB\n", {}, None),
    ],
)
def test_the_least_of_machine_and_container_is_available(meminfo, group, expected, tmp_path, monkeypatch):
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    for name, text in group.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == expected
