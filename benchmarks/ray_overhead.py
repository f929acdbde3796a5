"""A sweep on Ray beside the same sweep without it, in turns, by the command line: what Ray costs beyond its start.

Needs the extra `ray`. The machine's cores are those of the one process, or one for each of Ray's. A unit, the rows of one
batch on one route, is a file; its time here is (last file - first file) / (files - processes), which leaves out loading and
starting, and takes the units that run while the first one ends as not yet begun, to Ray's disadvantage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import arguments, in_turns, publish, ratio


def sweep(options: Any, on_ray: bool) -> tuple[float, float]:
    """Seconds a unit, and of the whole command."""
    processes = options.processes if on_ray else 1
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "depthdial", "sweep", options.model, "--task", "builtin", "--out", folder]
        for name in ("routes", "limit", "batch_size", "max_new_tokens"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += ["--ray", "--ray-actors", str(processes)] if on_ray else []
        threads = {"OMP_NUM_THREADS": str(options.processes // processes)}
        started = time.perf_counter()
        done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
        whole = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        ends = sorted(unit.stat().st_mtime for unit in Path(folder).glob("units/*.parquet"))
    return (ends[-1] - ends[0]) / (len(ends) - processes), whole


def main() -> None:
    options = arguments(
        __doc__,
        "ray-overhead.json",
        model="smollm2-135m",
        routes="full,uls:80%",
        limit=96,
        batch_size=4,
        max_new_tokens=24,
        processes=2,
        rounds=3,
    )
    wholes: dict[str, list[float]] = {"local": [], "ray": []}

    def timed(name: str) -> float:
        unit, whole = sweep(options, name == "ray")
        wholes[name].append(whole)
        return unit

    units = in_turns({name: lambda name=name: timed(name) for name in wholes}, options.rounds)
    rows = [{"what": name, "sec a unit": median(units[name]), "sec in all": median(wholes[name][1:])} for name in wholes]
    over = ratio(units["ray"], units["local"])
    spread = [round(a / b, 3) for a, b in zip(units["ray"], units["local"], strict=True)]
    rows.append({"what": "ray over local", "sec a unit": over, "sec in all": ratio(wholes["ray"][1:], wholes["local"][1:])})
    publish("A sweep on Ray beside one without", rows, options, ratios=spread, load=os.getloadavg()[1])


if __name__ == "__main__":
    main()
