"""Sweeps on Ray in which a process is killed at a random moment: the table is held against a local run's.

`python -m benchmarks.ray_faults --runs 20 --out benchmarks/results/ray-faults.json`: 64 units (32 batches on two routes) of
a tiny random model, two processes; kill -9 of one of them between the first unit and the last. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from depthdial.files import write_json
from depthdial.provenance import environment

UNITS = 64
# Seconds, which no two runs share, and the commit, which may move while they run.
MEASURED = ("batch_decode_sec", "batch_prefill_sec", "step_sec", "decode_sec", "commit")


def job_maker(out: str | None) -> Callable[[], Any]:
    """What makes the sweep; everything is imported in the process that calls it."""

    def make() -> Any:
        from depthdial.measure.sweep import Sweep
        from tests.conftest import WORDS, make_llama, make_task, make_tokenizer

        prompts = [f"{one} {other}" for one in WORDS[:8] for other in WORDS[8:24]]
        task = make_task(prompts, [f"the {prompt}" for prompt in prompts], "many")
        return Sweep.of(
            make_llama(), make_tokenizer(), task=task, routes="full,uls:3", out=out, batch_size=4, max_new_tokens=24
        )

    return make


def table_of(rows: Any) -> list[dict[str, Any]]:
    """Rows without what is another in every run."""
    return rows.drop_columns(list(MEASURED)).to_pylist()


def differing(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> list[str]:
    """The columns whose values differ."""
    return sorted({name for one, other in zip(rows, expected, strict=True) for name in one if one[name] != other[name]})


def workers() -> list[int]:
    """The processes of Ray Data that were started by this one's Ray."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [one.pid for one in found if one.name().startswith("ray::") and "MapWorker" in " ".join(one.cmdline())]


def kill_one(out: Path, moment: random.Random, told: dict[str, Any]) -> None:
    """Kill a process once a random number of units is there."""
    after = moment.randrange(1, UNITS - 4)
    while len(list(out.glob("units/*.parquet"))) < after:
        time.sleep(0.002)
    victims = workers()
    victim = moment.choice(victims)
    os.kill(victim, signal.SIGKILL)
    told |= {"units_at_kill": len(list(out.glob("units/*.parquet"))), "of_processes": len(victims)}


def run(seed: int, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """One sweep with one kill."""
    from depthdial.scale.settings import RaySettings
    from depthdial.scale.work import run_on_ray

    with tempfile.TemporaryDirectory() as folder:
        told: dict[str, Any] = {"seed": seed}
        killer = threading.Thread(target=kill_one, args=(Path(folder), random.Random(seed), told), daemon=True)
        killer.start()
        started = time.perf_counter()
        rows = run_on_ray(job_maker(folder), RaySettings(ray_actors=2))
        killer.join(1)
        keys = list(zip(rows["sequence_id"].to_pylist(), rows["route"].to_pylist(), strict=True))
        units = len(list(Path(folder).glob("units/*.parquet")))
        return told | {
            "seconds": round(time.perf_counter() - started, 2),
            "units": units,
            "rows": len(keys),
            "lost": len(expected) - len(set(keys)),
            "doubled": len(keys) - len(set(keys)),
            "equal": table_of(rows) == expected,
            "columns_that_differ": differing(table_of(rows), expected),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from depthdial.scale.cluster import cluster
    from depthdial.scale.settings import RaySettings

    local = job_maker(None)()
    local.run_shared(local.items())
    expected = table_of(local.collect())
    found = []
    with cluster(RaySettings()):
        for seed in range(given.runs):
            found.append(run(seed, expected))
            print(found[-1], flush=True)
            if given.out is not None:
                about = {"date": date.today().isoformat(), "load": os.getloadavg()[0], **environment()}
                write_json(given.out, {**about, "runs": found})


if __name__ == "__main__":
    main()
