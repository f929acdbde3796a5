"""The server under load, asked by the openai client, beside the engine alone on the same requests in the same run.

1,000 requests, 32 at a time, at mixed depths (names without commas); 5% are malformed, 5% are left by their client, half of
the others stream.
Counted: failures other than the malformed requests' 4xx, answers and reasons of their ends that are not the engine's own,
the memory of the server's process, and tokens per second beside the engine's (`dd.Engine.run`), before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import arguments, publish

KINDS = ("plain", "stream", "malformed", "left")
MALFORMED: tuple[dict[str, Any], ...] = (
    {"depth": "no-such-route"},
    {"depth": "../routes.json"},
    {"temperature": "hot"},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"no_such_field": 1},
    {"model": "another-model"},
    {"messages": []},
)


@dataclass(frozen=True)
class Asked:
    """One request of the load."""

    kind: str
    prompt: str
    depth: str
    max_tokens: int
    wrong: dict[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "depth": self.depth,
        } | self.wrong


def main() -> None:
    if sys.argv[1:2] == ["--offline"]:
        offline(*sys.argv[2:])
        return
    options = arguments(
        __doc__,
        "load_server.json",
        model="smollm2-135m",
        requests=1000,
        at_once=32,
        most_tokens=64,
        depths="full,80%,searched-20,searched-24,50%,lossless",
        malformed=0.05,
        left=0.05,
        seed=0,
    )
    plan = planned(options)
    before = engine_alone(options, plan)
    with server(options) as (port, process):
        found = asyncio.run(load(options, plan, port, process))
    after = engine_alone(options, plan)
    title, rows, extra = judged(options, plan, found, before, after)
    publish(title, rows, options, **extra)


def planned(options: Any) -> list[Asked]:
    """The requests in their order, the same for a seed."""
    import depthdial as dd

    draw = random.Random(options.seed)
    prompts = [one.instruction for one in dd.task("builtin").examples]
    depths = options.depths.split(",")
    found = []
    for number in range(options.requests):
        lot = draw.random()
        kind = "malformed" if lot < options.malformed else "left" if lot < options.malformed + options.left else None
        found.append(
            Asked(
                kind or draw.choice(("plain", "stream")),
                prompts[number % len(prompts)],
                draw.choice(depths),
                draw.randint(options.most_tokens // 4, options.most_tokens),
                draw.choice(MALFORMED) if kind == "malformed" else {},
            )
        )
    return found


# The engine alone, in a process of its own.


def engine_alone(options: Any, plan: list[Asked]) -> dict[str, Any]:
    requests = [[one.prompt, one.depth, one.max_tokens] for one in plan if one.kind in ("plain", "stream")]
    command = [sys.executable, __file__, "--offline", options.model]
    done = subprocess.run(command, input=json.dumps(requests), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def offline(model_name: str) -> None:
    import depthdial as dd
    from depthdial.serve.depths import Depths

    requests = json.load(sys.stdin)
    model, tokenizer = dd.load(model_name)
    depths = Depths(model, "model")
    with dd.Engine(model, tokenizer, max_rows=32) as engine:
        engine.run([requests[0][0]] * 8, max_new_tokens=8)
        started, cpu_sec, tokens = time.perf_counter(), time.process_time(), engine.stats().new_tokens
        asked = [
            engine.submit(
                messages=[{"role": "user", "content": prompt}], depth=depths.read(depth).depth, max_new_tokens=most
            )
            for prompt, depth, most in requests
        ]
        answers = [one.result() for one in asked]
        seconds, tokens = time.perf_counter() - started, engine.stats().new_tokens - tokens
        cpu_sec = time.process_time() - cpu_sec
    told = [[one.text, "length" if one.finish_reason == "length" else "stop"] for one in answers]
    found = {"tokens_per_sec": tokens / seconds, "tokens_per_cpu_sec": tokens / cpu_sec, "answers": told}
    print(json.dumps(found))


# The server, in another.


@contextlib.contextmanager
def server(options: Any) -> Iterator[tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "depthdial", "serve", options.model, "--port", str(port)])
    try:
        ends = time.monotonic() + 300
        while not is_ready(port):
            assert process.poll() is None and time.monotonic() < ends, "the server did not start"
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, "the server did not end well"


def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    return False


def metric(port: int, name: str) -> float:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def memory_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def busy_sec(pid: int) -> float:
    """Processor time of a process so far, which others on the machine change little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(options: Any, plan: list[Asked], port: int, pid: int) -> dict[str, Any]:
    from openai import AsyncOpenAI

    results: list[Any] = [None] * len(plan)
    queue, memory = iter(range(len(plan))), []
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600) as client:
        for _ in range(8):  # kernels and caches are warm, as offline
            await client.chat.completions.create(**arguments_of(Asked("plain", "Say hello.", "full", 8, {}), options))
        tokens, started = metric(port, "depthdial_generation_tokens_total"), time.perf_counter()
        cpu_sec = busy_sec(pid)

        async def worker() -> None:
            for place in queue:
                results[place] = await one_request(client, plan[place], options)
                memory.append(memory_bytes(pid))

        await asyncio.gather(*(worker() for _ in range(options.at_once)))
        seconds, cpu_sec = time.perf_counter() - started, busy_sec(pid) - cpu_sec
    tokens = metric(port, "depthdial_generation_tokens_total") - tokens
    cancelled = metric(port, "depthdial_requests_cancelled_total")
    rates = {"tokens_per_sec": tokens / seconds, "tokens_per_cpu_sec": tokens / cpu_sec}
    return {"results": results, "memory": memory, "cancelled": cancelled, **rates}


def arguments_of(asked: Asked, options: Any) -> dict[str, Any]:
    body = asked.body
    known = {"messages", "max_tokens", "temperature", "tools", "model"}
    given = {name: value for name, value in body.items() if name in known}
    extra = {name: value for name, value in body.items() if name not in known}
    return {"model": options.model, **given, "extra_body": extra}


async def one_request(client: Any, asked: Asked, options: Any) -> Any:
    """[status, text, reason]; what went wrong otherwise, as text."""
    import openai

    given = arguments_of(asked, options)
    try:
        if asked.kind == "left":
            return await left(client, given, streams=asked.max_tokens % 2 == 0)
        if asked.kind == "stream":
            stream = await client.chat.completions.create(**given, stream=True)
            text, reasons = "", []
            async for chunk in stream:
                choice = chunk.choices[0]
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            return [200, text, reasons[0] if len(reasons) == 1 else str(reasons)]
        answer = await client.chat.completions.create(**given)
        return [200, answer.choices[0].message.content, answer.choices[0].finish_reason]
    except openai.APIStatusError as error:
        return [error.status_code, "", ""]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def left(client: Any, given: dict[str, Any], streams: bool) -> Any:
    """A client that goes before its answer is there."""
    if streams:
        stream = await client.chat.completions.create(**given, stream=True)
        async for _ in first_of(stream, 3):
            pass
        await stream.close()
        return ["left"]
    task = asyncio.ensure_future(client.chat.completions.create(**given))
    await asyncio.sleep(0.3)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return ["left"]


async def first_of(stream: Any, most: int) -> Any:
    numbers = itertools.count(1)
    async for one in stream:
        yield one
        if next(numbers) >= most:
            return


# What came of it.


def judged(
    options: Any, plan: list[Asked], found: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    expected = iter(before["answers"])
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for asked, result in zip(plan, found["results"], strict=True):
        counts[asked.kind] += 1
        if asked.kind == "malformed":
            if not (isinstance(result, list) and result[0] in (400, 404)):
                failures.append(f"malformed: {result}")
        elif asked.kind == "left":
            if result != ["left"]:
                failures.append(f"left: {result}")
        else:
            text, reason = next(expected)
            if not isinstance(result, list) or result[0] != 200:
                failures.append(f"{asked.kind}: {result}")
                continue
            counts["texts that differ"] += result[1] != text
            counts["reasons that differ"] += result[2] != reason
    memory = found["memory"]
    quarter = len(memory) // 4
    early, late = (sum(part) / len(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    rows = [
        {"what": "requests", "value": len(plan)},
        *({"what": name, "value": counts[name]} for name in KINDS),
        {"what": "failures", "value": len(failures)},
        {"what": "texts that differ", "value": counts["texts that differ"]},
        {"what": "reasons that differ", "value": counts["reasons that differ"]},
        {"what": "cancelled in the engine", "value": int(found["cancelled"])},
        *_rates("tokens/s", [one["tokens_per_sec"] for one in (found, before, after)]),
        *_rates("tokens per CPU second", [one["tokens_per_cpu_sec"] for one in (found, before, after)]),
        {"what": "memory, last quarter over second", "value": late / early},
        {"what": "memory, MB", "value": late / 1e6},
        {"what": "load average", "value": os.getloadavg()[1]},
    ]
    return f"{len(plan)} requests, {options.at_once} at a time, {options.model}", rows, {"failures": failures[:20]}


def _rates(name: str, rates: list[float]) -> list[dict[str, Any]]:
    server, *alone = rates
    return [
        {"what": f"{name}, server", "value": server},
        {"what": f"{name}, engine before", "value": alone[0]},
        {"what": f"{name}, engine after", "value": alone[1]},
        {"what": f"{name}, of the engine's", "value": server / (sum(alone) / 2)},
    ]


if __name__ == "__main__":
    main()
