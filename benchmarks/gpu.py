"""The engine on a GPU, in one run of some minutes: `python -m benchmarks.gpu --out DIR`.

Every result is a line of `gpu.jsonl` as soon as it is there; `gpu.json` is all of them with where they come from. A part
that fails, or runs out of its time, leaves the others alone; a run that was stopped goes on with the parts that are not
whole. Parts: `machine` (bandwidth, matrix products), `steps` (a step of one row of SmolLM2's shape: transformers, layer by
layer, graphs; all layers and half of them), `sizes` (random Llamas of 1.3B and 7B: how much of the bandwidth), `rows` (256
rows on five nested routes), `drafts` (self-speculation: forecast and measured), `kernels` (attention and norms in several
ways) and `profile`.

Without `--model` weights are random, which changes no time: layers that half the routes skip are made weak, so that drafts
are accepted now and then.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn import functional

from benchmarks.gpu_run import SMOLLM2, NoTokenizer, Run, graphs, resume, run_part, settings_of, summarize
from depthdial.engine.batch import RowBatch
from depthdial.engine.graphs import graphs_of, note_routes, warm_up_graphs
from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import GREEDY
from depthdial.engine.session import Session
from depthdial.engine.speculation import Drafting
from depthdial.errors import InputError
from depthdial.files import check_out_folder
from depthdial.measure.ceilings import measure_ceilings
from depthdial.measure.cost import model_cost
from depthdial.measure.passes import Checks, hf_secs, step_secs
from depthdial.routes import Route

_LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
# Of the whole time, for each part; what one leaves is the next one's.
_SHARES = {"machine": 0.06, "steps": 0.24, "sizes": 0.24, "rows": 0.2, "drafts": 0.12, "kernels": 0.06, "profile": 0.08}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; a run that was stopped goes on there"
    )
    parser.add_argument("--model", help="a GGUF file, folder or name, in place of random weights of SmolLM2's shape")
    parser.add_argument("--minutes", type=float, default=8.0, help="most that all parts may take together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--parts", default=",".join(_SHARES), help="which, of the default's")
    given = parser.parse_args(arguments)
    try:
        device = torch.device(given.device)
    except RuntimeError:
        _leave(f"The device {given.device!r} is unknown: use cuda or cpu.")
    if not given.minutes > 0:
        _leave(f"The limit of {given.minutes:g} minutes leaves no time: give more, such as --minutes 8.")
    if device.type == "cuda" and not torch.cuda.is_available():
        _leave("No CUDA device is there: run this on a machine with a GPU, or try it with --device cpu --tiny.")
    unknown = [name for name in given.parts.split(",") if name not in _SHARES]
    if unknown:
        _leave(f"The part {unknown[0]!r} is unknown: use {', '.join(_SHARES)}.")
    try:
        check_out_folder(given.out).mkdir(parents=True, exist_ok=True)
    except InputError as error:
        _leave(str(error))
    run = Run(given.out, device, given.tiny, given.model, time.monotonic() + 60 * given.minutes)
    finished = resume(run)
    asked = {"machine", *given.parts.split(",")} - finished  # the others compare with the machine
    left = {name: share for name, share in _SHARES.items() if name in asked}
    for name in list(left):
        share = left[name] / sum(left.values())
        del left[name]
        run_part(run, name, _PARTS[name], max(0.0, run.until - time.monotonic()) * share)
        summarize(run)
    summarize(run)


def _leave(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"ms": 1e3 * statistics.median(ordered), "p20_ms": 1e3 * ordered[len(ordered) // 5], "best_ms": 1e3 * ordered[0]}


def _read_bytes(session: Session, route: Route) -> float:
    """Of the weights that a step reads."""
    cost = model_cost(session.model)
    return sum(cost.layers[i].weight_bytes for i in route.layers) + cost.head_bytes


def _state(session: Session) -> dict[str, Any]:
    found = graphs_of(session.model)
    return {} if found is None else {"graphs": found.n_recorded, "why_no_graphs": found.why_not}


def _pass_secs(run: Run, session: Session, routes: Sequence[Route], ready: Prefill, groups: Any = None) -> list[float]:
    """Seconds of steps of some rows, whose tokens are the likeliest; rows in groups are batches of their own."""
    batches = []
    for group in groups or [list(range(ready.n_sequences))]:
        batch = RowBatch(session.model, len(group))
        rows = torch.tensor(group, device=run.device)
        batch.join(ready.select(rows), [routes[i] for i in group], group, run.steps)
        batches.append(batch)
    tokens = [torch.full((len(batch),), 5, device=run.device) for batch in batches]
    stamps = []
    for _ in range(run.steps + 6):
        stamps.append(clock_sec(run.device))
        tokens = [batch.step(one).argmax(-1) for batch, one in zip(batches, tokens, strict=True)]
        for batch, n in zip(batches, [[-1] * len(batch) for batch in batches], strict=True):
            batch.advance(n)  # the context stays as long as it is
    stamps.append(clock_sec(run.device))
    return [b - a for a, b in pairwise(stamps)][6:]


def _machine(run: Run) -> None:
    width = 32 if run.is_tiny else 4096
    found = measure_ceilings(run.device, run.dtype, width, (1, 32, 256), scale=1e-3 if run.is_tiny else 1.0)
    run.add("machine", "bandwidth", bytes_per_sec=found.bandwidth_bytes_per_sec, settings=settings_of(run))
    for one in found.gemm:
        run.add("machine", f"products of {one.rows} rows", flops_per_sec=one.flops_per_sec)


def _steps(run: Run) -> None:
    session = run.small
    half = Route.parse("uls:50%", session.n_layers)
    prompts = run.prompts(session, 1)
    ready = session.prefill_ids(prompts)
    times = {"transformers": hf_secs(session, prompts, run.steps)[1][3:]}
    run.add("steps", "transformers generate", layers=session.n_layers, **_spread(times["transformers"]))
    for are_on, name in ((False, "layer by layer"), (True, "graphs")):
        with graphs(are_on):
            if are_on:
                started = clock_sec(run.device)
                n = warm_up_graphs(session.model, [session.full, half], max_rows=1, max_tokens=256)
                run.add("steps", "warm-up", sec=clock_sec(run.device) - started, recorded=n, **_state(session))
            for route in (session.full, half):
                floor = _read_bytes(session, route) / run.bandwidth
                for how, secs in (
                    ("loop", step_secs(session, route, ready, run.steps)[3:]),
                    ("pass", _pass_secs(run, session, [route], ready)),
                ):
                    times[f"{name} {how} {len(route)}"] = secs
                    speedup = statistics.median(times["transformers"]) / statistics.median(secs)
                    of_bandwidth = floor / statistics.median(secs)
                    about = {"layers": len(route), "times_hf": speedup, "of_bandwidth": of_bandwidth}
                    run.add("steps", f"{name}, {how}", **about, **_spread(secs), **_state(session))
    for how in ("loop", "pass"):
        full, shallow = (statistics.median(times[f"graphs {how} {n}"]) for n in (session.n_layers, len(half)))
        run.add("steps", f"half the layers of all, {how}", ratio=shallow / full, aim=0.6, full_ms=1e3 * full, aim_ms=2.0)
    for dtype in (run.dtype, torch.float32):
        one = session if dtype == run.dtype else Session.of(run.random(SMOLLM2, dtype), NoTokenizer())
        ready, n = one.prefill_ids(run.prompts(one, 3)), 8 if run.is_tiny else 48
        found = []
        for are_on in (False, True):
            with graphs(are_on):
                found.append(one.decode(one.full, ready, n).tokens)
        pairs = [(a, b) for mine, theirs in zip(*found, strict=True) for a, b in zip(mine, theirs, strict=False)]
        same = sum(a == b for a, b in pairs) / len(pairs)
        run.add("steps", f"equal tokens, graphs and not, {dtype}", share=same, tokens=len(pairs), **_state(one))


def _sizes(run: Run) -> None:
    for name, shape in (("1.3B", _LLAMA_1B), ("7B", _LLAMA_7B)):
        started = clock_sec(run.device)
        session = Session.of(run.random(shape), NoTokenizer())
        routes = [Route.parse(f"uls:{percent}%", session.n_layers) for percent in (75, 50, 25)]
        ready = session.prefill_ids(run.prompts(session, 1))
        run.add("sizes", f"{name} made", sec=clock_sec(run.device) - started)
        warm_up_graphs(session.model, [session.full, *routes], max_rows=1, max_tokens=256)
        for route in (session.full, *routes):
            secs, floor = _pass_secs(run, session, [route], ready), _read_bytes(session, route) / run.bandwidth
            run.add(
                "sizes", f"{name}, graphs", layers=len(route), **_spread(secs),
                of_bandwidth=floor / statistics.median(secs), aim=0.7, **_state(session),
            )  # fmt: skip
        with graphs(False):
            secs = _pass_secs(run, session, [session.full], ready)
        run.add("sizes", f"{name}, layer by layer", layers=session.n_layers, **_spread(secs))
        del session, ready
        gc.collect()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _rows(run: Run) -> None:
    session, n_rows = run.small, 8 if run.is_tiny else 256
    n = session.n_layers
    deepest = [session.full, *(Route.parse(f"uls:{percent}%", n) for percent in (90, 80, 65, 50))]
    kept = set(range(n))
    for place, route in enumerate(deepest):  # each within the one before, whatever uniform skipping gives
        kept &= set(route.layers)
        deepest[place] = Route(tuple(sorted(kept)), n)
    routes = [deepest[i * len(deepest) // n_rows] for i in range(n_rows)]
    buckets = [[i for i in range(n_rows) if routes[i] is route] for route in deepest]
    ready = session.prefill_ids(run.prompts(session, n_rows))
    for are_on, how in ((True, "graphs"), (False, "layer by layer")):
        with graphs(are_on):
            note_routes(session.model, deepest)
            secs = {"layer-major": _pass_secs(run, session, routes, ready)}
            run.add("rows", f"layer-major, {how}", rows=n_rows, **_spread(secs["layer-major"]), **_state(session))
            secs["by route"] = _pass_secs(run, session, routes, ready, buckets)
            run.add("rows", f"by route, {how}", rows=n_rows, **_spread(secs["by route"]))
            shares = 0.0
            for route, bucket in zip(deepest, buckets, strict=True):
                alone = statistics.median(_pass_secs(run, session, [route] * n_rows, ready))
                run.add("rows", f"all rows on one route, {how}", layers=len(route), ms=1e3 * alone)
                shares += len(bucket) / n_rows * alone
            mixed = statistics.median(secs["layer-major"])
            by_route = statistics.median(secs["by route"]) / mixed
            run.add(
                "rows", f"of the sum of shares, {how}", ratio=shares / mixed, aim=0.9, by_route_over_layer_major=by_route
            )


def _drafts(run: Run) -> None:
    session = run.small
    n = session.n_layers
    route = Route(tuple(i for i in range(n) if i in (0, n - 1) or i % 2 == 0), n)  # what a random model has left strong
    ready, n_new = session.prefill_ids(run.prompts(session, 1)), 8 if run.is_tiny else 96
    note_routes(session.model, [route])

    def answer(drafting: Drafting | None) -> tuple[float, list[int]]:
        for turn in range(2):  # the first records
            started = clock_sec(run.device)
            tokens = decode_tokens(
                session.model, session.full, ready, Sampler.from_draws(GREEDY, None, (), 1, n_new),
                max_new_tokens=n_new, pad_token_id=0, drafting=drafting,
            )[0]  # fmt: skip
            if turn:
                return clock_sec(run.device) - started, tokens
        raise AssertionError

    plain_sec, expected = answer(None)
    step = statistics.median(step_secs(session, session.full, ready, run.steps)[3:])
    draft = statistics.median(step_secs(session, route, ready, run.steps)[3:])
    checks = Checks(session, session.full, ready)
    for k in (2, 4):
        for _ in range(3):
            checks.sec(k + 1)
        check = statistics.median(checks.sec(k + 1) for _ in range(8))
        drafting = Drafting(route, draft_tokens=k)
        sec, tokens = answer(drafting)
        counts = drafting.counts[0]
        kept = sum(counts.accepted) / max(1, counts.rounds)
        forecast = (1 + kept) * step / (k * draft + check)
        run.add(
            "drafts", f"drafts of {k}", layers=len(route), speedup=plain_sec / sec, forecast=forecast, kept_a_round=kept,
            step_ms=1e3 * step, draft_ms=1e3 * draft, check_ms=1e3 * check, **_state(session),
            equal=sum(a == b for a, b in zip(tokens, expected, strict=True)) / len(expected),
        )  # fmt: skip


def _kernels(run: Run) -> None:
    """What one call takes, of many that are launched at once: ways to compute attention, norms and products."""
    heads, kv_heads, dim = (4, 2, 8) if run.is_tiny else (9, 3, 64)
    make = {"device": run.device, "dtype": run.dtype}
    attention = functional.scaled_dot_product_attention
    with torch.no_grad():
        for rows, window in ((1, 256), (1, 1024), (32, 256), (256, 256)):
            query, mask = torch.randn(rows, heads, 1, dim, **make), torch.zeros(rows, 1, 1, window, **make)
            keys, values = (torch.randn(rows, kv_heads, window, dim, **make) for _ in range(2))
            folded = query.reshape(rows, kv_heads, heads // kv_heads, dim)

            def written_out(folded: Any = folded, keys: Any = keys, values: Any = values, mask: Any = mask) -> Any:
                return torch.matmul((torch.matmul(folded, keys.transpose(-1, -2)) + mask).softmax(-1), values)

            ways: dict[str, Callable[[], Any]] = {
                "folded": lambda f=folded, k=keys, v=values, m=mask: attention(f, k, v, attn_mask=m),
                "grouped": lambda q=query, k=keys, v=values, m=mask: attention(q, k, v, attn_mask=m, enable_gqa=True),
                "written out": written_out,
            }
            for name, way in ways.items():
                run.add("kernels", f"attention, {name}", rows=rows, window=window, us=1e6 * _call_sec(run, way))
        width = 32 if run.is_tiny else 576
        x, weight = torch.randn(1, 1, width, **make), torch.ones(width, **make)
        wide = torch.randn(width * 8 // 3, width, **make)

        def stock_norm() -> torch.Tensor:
            numbers = x.float()
            return weight * (numbers * torch.rsqrt(numbers.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

        run.add("kernels", "norm, as in transformers", us=1e6 * _call_sec(run, stock_norm))
        run.add("kernels", "norm, fused", us=1e6 * _call_sec(run, lambda: functional.rms_norm(x, (width,), weight, 1e-5)))
        run.add("kernels", "product, linear", us=1e6 * _call_sec(run, lambda: functional.linear(x, wide)))
        run.add("kernels", "product, mv", us=1e6 * _call_sec(run, lambda: torch.mv(wide, x.view(-1))))


def _call_sec(run: Run, call: Callable[[], Any], calls: int = 50) -> float:
    """Of one call among many in a graph, on a GPU."""
    call()
    if run.device.type != "cuda":
        return statistics.median(_timed(run, call) for _ in range(5))
    from depthdial.engine.recording import recorder_for

    def work(begin: Callable[[], object]) -> torch.Tensor:
        begin()
        return [call() for _ in range(calls)][-1]

    recorder = recorder_for(torch.device("cuda", torch.cuda.current_device()))
    assert recorder is not None
    graph, _ = recorder.record(work)
    return statistics.median(_timed(run, graph.replay) for _ in range(9)) / calls


def _timed(run: Run, call: Callable[[], Any]) -> float:
    started = clock_sec(run.device)
    call()
    return clock_sec(run.device) - started


def _profile(run: Run) -> None:
    from torch.profiler import ProfilerActivity, profile

    session, n = run.small, 3 if run.is_tiny else 10
    ready = session.prefill_ids(run.prompts(session, 1))
    is_cuda = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    for are_on, name in ((True, "graphs"), (False, "layer by layer")):
        with graphs(are_on):
            batch = RowBatch(session.model, 1)
            batch.join(ready, [session.full], [0], run.steps)
            tokens = torch.full((1,), 5, device=run.device)
            for _ in range(3):
                batch.step(tokens)
            clock_sec(run.device)
            with profile(activities=activities) as seen:
                started = clock_sec(run.device)
                for _ in range(n):
                    batch.step(tokens)
                wall = clock_sec(run.device) - started
        events = seen.key_averages()
        spent = {one.key: (one.self_device_time_total if is_cuda else one.self_cpu_time_total, one.count) for one in events}
        spent = {key: value for key, value in spent.items() if value[0] > 0}
        busy = sum(us for us, _ in spent.values()) / n
        run.add("profile", name, wall_us=1e6 * wall / n, busy_us=busy, kernels=sum(count for _, count in spent.values()) / n)
        for key, (us, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:12]:
            run.add("profile", f"{name}: {key[:80]}", us_a_step=us / n, calls_a_step=count / n, share=us / n / busy)


_PARTS: dict[str, Callable[[Run], None]] = {
    "machine": _machine, "steps": _steps, "sizes": _sizes, "rows": _rows, "drafts": _drafts, "kernels": _kernels,
    "profile": _profile,
}  # fmt: skip

if __name__ == "__main__":
    main()
