"""The commands on Ray itself, in processes of their own: what they write is what they write without it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.ray_faults import table_of
from tests.conftest import make_llama
from tests.serve.served import FAMILY, chat_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'depthdial[ray]'"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model as base/ and rows to sweep and to search on."""
    folder = tmp_path_factory.mktemp("ray")
    make_llama().save_pretrained(folder / "base")
    chat_tokenizer().save_pretrained(folder / "base")
    for name, words in (("rows", ("one", "two", "six")), ("others", ("three", "four"))):
        rows = [{"prompt": f"{n} {a} sat", "reference": f"the {a}"} for n in words for a in ("cat", "dog", "mat", "it")]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(home: Path, *words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "depthdial", *map(str, words)],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(home: Path, *words: object) -> str:
    running = start(home, *words)
    out, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    return out


SWEEP = ("sweep", "base", "--data", "rows.jsonl", "--depth", "full,uls:3", "--max-new-tokens", 4, "--batch-size", 2)
SEARCH = ("search", "base", "--data", "others.jsonl", "--answer-tokens", 4, "--method", "beam", "--beam-width", 2)


def test_a_sweep_is_the_local_one_and_goes_on_from_it(home):
    run(home, *SWEEP, "--out", "local")
    run(home, *SWEEP, "--out", "on-ray", "--ray", "--ray-actors", 2)
    local, on_ray = (pq.read_table(home / name / "rows.parquet") for name in ("local", "on-ray"))
    assert on_ray.num_rows == 24 and table_of(on_ray) == table_of(local)
    names = [sorted(path.name for path in (home / name / "units").iterdir()) for name in ("local", "on-ray")]
    assert names[0] == names[1]

    # What is there stays, bit for bit, whoever has measured it; what is not is measured.
    kept = {path: path.read_bytes() for path in (home / "on-ray" / "units").glob("*.parquet")}
    gone = sorted(kept)[:5]
    for path in gone:
        path.unlink()
    run(home, *SWEEP, "--out", "on-ray")
    assert all(path.read_bytes() == kept[path] for path in kept if path not in gone)
    assert table_of(pq.read_table(home / "on-ray" / "rows.parquet")) == table_of(local)


def test_a_sweep_that_is_killed_goes_on_with_ray(home):
    running = start(home, *SWEEP, "--out", "killed", "--ray", "--ray-actors", 2, "--max-new-tokens", 40)
    while len(list((home / "killed").glob("units/*.parquet"))) < 3:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    before = {path: path.read_bytes() for path in (home / "killed").glob("units/*.parquet")}
    run(home, *SWEEP, "--out", "killed", "--ray", "--max-new-tokens", 40)
    run(home, *SWEEP, "--out", "whole", "--max-new-tokens", 40)
    assert all(path.read_bytes() == kept for path, kept in before.items())
    killed, whole = (pq.read_table(home / name / "rows.parquet") for name in ("killed", "whole"))
    assert table_of(killed) == table_of(whole)


def test_a_search_finds_the_local_family(home):
    printed = [run(home, *SEARCH, "--out", "routes.json")]
    printed.append(run(home, *SEARCH, "--out", "routes-on-ray.json", "--ray", "--ray-actors", 2).replace("-on-ray", ""))
    assert printed[0] == printed[1]
    local, on_ray = (json.loads((home / f"routes{name}.json").read_text()) for name in ("", "-on-ray"))
    for family in (local, on_ray):
        del family["made_by"]["seconds"], family["made_by"]["calibration"]["seconds"]
    assert local == on_ray


def test_a_failure_in_a_process_is_one_sentence(home):
    code = """
import depthdial as dd, sys
from depthdial.errors import InputError
from depthdial.scale.settings import RaySettings
from depthdial.scale.work import run_on_ray
from benchmarks.ray_faults import job_maker
make = job_maker(sys.argv[1])
def other():
    raise InputError("The disk is full: make room.")
try:
    run_on_ray(other, RaySettings(), job=make())
except InputError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(home / "failed")], capture_output=True, text=True, timeout=300)
    assert ran.stdout.splitlines()[-1:] == ["The disk is full: make room."], ran.stderr


def test_two_replicas_answer_the_official_client(home):
    from openai import APIStatusError, OpenAI

    FAMILY.save(home / "mine.json")
    (home / "keys").write_text("sk-one\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = ("--ray", "--replicas", 2, "--port", port, "--routes", "mine.json", "--api-keys", "keys", "--depth", "mine-3")
    with serving(home, port, *given) as running:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-one", max_retries=0, timeout=60)
        assert [one.id for one in client.models.list()][:3] == ["base", "base:mine-3", "base:mine-4"]
        asked = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8, "temperature": 0}
        told = [client.chat.completions.create(model="base", **asked) for _ in range(8)]
        assert len({one.choices[0].message.content for one in told}) == 1
        assert {one.usage.model_extra["depthdial"]["layers_run"] for one in told} == {3}
        streamed = client.chat.completions.create(model="base", stream=True, **asked)
        text = "".join(one.choices[0].delta.content or "" for one in streamed if one.choices)
        assert text == told[0].choices[0].message.content
        full = client.chat.completions.create(model="base:full", **asked)
        assert full.usage.model_extra["depthdial"]["layers_run"] == 6
        with pytest.raises(APIStatusError) as refused:
            client.chat.completions.create(model="base", tools=[{"type": "function", "function": {"name": "f"}}], **asked)
        assert refused.value.status_code == 400 and refused.value.param == "tools"
        with pytest.raises(APIStatusError, match="401"):
            OpenAI(base_url=client.base_url, api_key="no", max_retries=0).models.list()
        answers = [None] * 24

        def ask(i):
            answers[i] = client.completions.create(model="base", prompt="the cat", max_tokens=1 + i % 7, temperature=0)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(answers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert all(one.usage.completion_tokens <= 1 + i % 7 for i, one in enumerate(answers))
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
        assert running.returncode == 0 and "Traceback" not in err, err


def test_a_replica_that_cannot_be_built_is_told(home):
    running = start(home, "serve", "base", "--ray", "--depth", "nothing", "--port", 0)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 2 and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("depthdial: Unknown route 'nothing': ") and len(err.splitlines()) == 2, err


@contextlib.contextmanager
def serving(home: Path, port: int, *given: object):
    running = start(home, "serve", "base", *given)
    try:
        deadline = time.monotonic() + 300
        while not is_ready(port):
            assert running.poll() is None and time.monotonic() < deadline, running.communicate()
            time.sleep(0.5)
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
