"""A thousand requests a second, and 70B on eight GPUs: what depth saves there, by simulation.

    depthdial bench smollm2-135m --dtype bfloat16 --depths full,uls:80%,uls:50% --rows 1,4,16,32,64 --context 64,160 \
        --prompts 32,128 --drafts 1 --rounds 3 --most-tokens 12000 --no-baseline --out runs/bench-scale
    python -m benchmarks.scale [--latency runs/bench-scale]

The small model's clock is what `depthdial bench` measured (kept beside the results), the large one's is computed from data
sheets (`data_sheet.py` says which numbers are assumed). Everything is drawn from one seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, publish
from benchmarks.scale.data_sheet import Gpus, Shape, fixed_sec, latency_of, layer_sec, rows_that_fit
from benchmarks.scale.figure import draw
from benchmarks.scale.simulate import Depths, Replica, most_requests, simulate
from depthdial.latency.model import LatencyModel

WANTED_PER_SEC = 1000
SMALL, LARGE = "smollm2-135m, 2 cores", "70B, 8 GPUs"
FULL, MIXED, APART, SHED, ROUTE = (
    "every layer",
    "half on 60%, in the same batches",
    "half on 60%, on other replicas",
    "80% while more than 8 wait",
    "80%, prompts too",
)
# How soon 95% of the requests have their first token, in seconds.
_SOON_SEC = {SMALL: 2.0, LARGE: 1.0}
_FIGURE = Path(__file__).parent.parent.parent / "docs" / "images" / "scale.png"


def depths_of(n_layers: int) -> Mapping[str, Depths]:
    """Depths of requests by policy. Numbers of layers are of nested routes."""
    coin = np.random.default_rng(0).random(1 << 16) < 0.5
    return {
        FULL: lambda *_: n_layers,
        "80%": lambda *_: 0.8 * n_layers,
        ROUTE: lambda *_: 0.8 * n_layers,
        MIXED: lambda one, _: (0.6 if coin[one % len(coin)] else 1.0) * n_layers,
        APART: lambda *_: 0.6 * n_layers,
        SHED: lambda _, waiting: (0.8 if waiting > 8 else 1.0) * n_layers,
    }


def replicas_of(small: LatencyModel) -> Mapping[str, Replica]:
    shape, gpus = Shape(), Gpus()
    large = latency_of(shape, gpus, "Llama 3.1 70B")
    return {
        SMALL: Replica(small, max_rows=64, max_prefills=8, prompt_tokens=64, new_tokens=64),
        LARGE: Replica(large, max_rows=256, max_prefills=4, prompt_tokens=512, new_tokens=256),
    }


def capacities(name: str, replica: Replica, n_requests: int) -> Iterator[dict[str, Any]]:
    """For each policy, the requests per second of a replica and the replicas for a thousand."""
    rates: dict[str, float] = {}
    empty = dict.fromkeys(("first token, p50 s", "p95 s", "ms a token", "rows", "layers"), "")
    for policy, depths in depths_of(replica.latency.n_layers).items():
        asked = replace(replica, prompt_share=0.8) if policy == ROUTE else replica
        rates[policy] = most_requests(asked, depths, _SOON_SEC[name], n_requests)
        row = {
            "replica": name,
            "depth": policy,
            "requests/s": rates[policy],
            "replicas": math.ceil(WANTED_PER_SEC / rates[policy]),
            "of every layer": rates[policy] / rates[FULL],
            **empty,
        }
        if policy == APART:  # measured on the pool at 60%; the other one runs every layer
            row["replicas"] = sum(math.ceil(WANTED_PER_SEC / 2 / rates[pool]) for pool in (FULL, APART))
            row["requests/s"] = 2 / (1 / rates[FULL] + 1 / rates[APART])
            row["of every layer"] = row["requests/s"] / rates[FULL]
        else:
            seen = simulate(asked, rates[policy], depths, n_requests)
            row["first token, p50 s"], row["p95 s"] = map(float, np.quantile(seen.first_token_sec, (0.5, 0.95)))
            row["ms a token"] = 1000 * float(np.nanmedian(seen.token_sec))
            row["rows"], row["layers"] = seen.rows, seen.layers
        yield row


def arithmetic() -> dict[str, Any]:
    """What the sentences about 70B say, each a number that follows from the data sheet and the shape."""
    shape, gpus = Shape(), Gpus()
    one = layer_sec(shape, gpus, 1, 1, 1024)
    step = fixed_sec(shape, gpus, 1) + shape.n_layers * sum(one.values())
    shallow = fixed_sec(shape, gpus, 1) + 0.8 * shape.n_layers * sum(one.values())
    prompt = 2 * shape.n_layers * shape.layer_weights * 512 / gpus.reached_flops_per_sec
    takes_over = gpus.reached_flops_per_sec * shape.bytes_each / (2 * gpus.reached_bytes_per_sec)
    return {
        "weights_bytes": shape.all_bytes,
        "layer_bytes": shape.layer_bytes,
        "kv_bytes_per_token": shape.n_layers * shape.kv_bytes,
        "layer_ms": {name: 1000 * sec for name, sec in one.items()},
        "step_ms": 1000 * step,
        "step_ms_80": 1000 * shallow,
        "fixed_ms": 1000 * fixed_sec(shape, gpus, 1),
        "tokens_where_computing_takes_over": takes_over,
        "prompt_of_512_ms": 1000 * prompt,
        "rows_of_4096": rows_that_fit(shape, gpus, 4096, shape.n_layers),
        "rows_of_4096_80": rows_that_fit(shape, gpus, 4096, int(0.8 * shape.n_layers)),
        "stages_of_10_with_16_dropped_in_two": 10,  # the six other stages keep their ten layers
        "gpus": asdict(gpus),
        "shape": asdict(shape),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=Path, default=RESULTS / "bench-smollm2-135m-bf16.json")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    replicas = replicas_of(LatencyModel.load(options.latency))
    options.latency = options.latency.name
    rows = [row for name, replica in replicas.items() for row in capacities(name, replica, options.requests)]
    publish("A thousand requests a second, simulated", rows, options, arithmetic=arithmetic(), seed=0)
    print(f"figure: {draw(rows, _FIGURE)}")


if __name__ == "__main__":
    main()
