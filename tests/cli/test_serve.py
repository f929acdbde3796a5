"""`serve` from the command line: a real server in this process, stopped as Ctrl-C stops it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.serve.served import FAMILY, until


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_from_the_command_to_an_answer_and_back(paths, command_line, port, tmp_path):
    FAMILY.save(tmp_path / "mine.json")
    (tmp_path / "keys").write_text("sk-one\n")
    told = {}

    def get(path, body=None, key="sk-one"):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())

    def is_ready():
        try:
            return get("/health")["status"] == "ok"
        except OSError:
            return False

    def ask():
        try:
            until(is_ready)
            told["ids"] = [one["id"] for one in get("/v1/models")["data"]]
            told["answer"] = get("/v1/completions", {"prompt": "the cat", "max_tokens": 2})
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get("/v1/models", key="no")
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    asking = threading.Thread(target=ask)
    asking.start()
    given = ("--port", str(port), "--routes", tmp_path / "mine.json", "--api-keys", tmp_path / "keys", "--depth", "mine-3")
    status, out, err = command_line("serve", paths / "base", *given)
    asking.join(20)
    assert (status, out) == (0, ""), err
    assert f"http://127.0.0.1:{port}/v1" in err
    assert told["ids"][:3] == ["base", "base:mine-3", "base:mine-4"]
    assert told["answer"]["usage"]["depthdial"]["layers_run"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--shadow", "lots"), "The shadow share 'lots'"),
        (("--api-keys", "nowhere"), "Cannot read the API keys in nowhere"),
        (("--routes", "nowhere.json"), "There is no route family file nowhere.json"),
        (("--host", "203.0.113.1"), "Cannot listen on 203.0.113.1 port 8000"),
        (("--efforts", "low"), "The effort 'low' has no depth"),
        (("--port", "0", "--depth", "nothing"), "Unknown route 'nothing'"),
        (("--port", "0", "--controller", "nowhere"), "controller"),
    ],
)
@pytest.mark.filterwarnings("ignore::depthdial.RouteWarning")
def test_what_cannot_be_served(paths, command_line, given, message):
    status, _, err = command_line("serve", paths / "base", *given)
    assert status == 2 and message in err and "Traceback" not in err


def test_a_port_that_is_taken(paths, command_line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = command_line("serve", paths / "base", "--port", str(taken.getsockname()[1]))
    assert status == 2 and "Cannot listen on 127.0.0.1" in err


def test_the_extra_is_named_where_it_is_missing(paths, command_line, monkeypatch):
    monkeypatch.setattr("depthdial.cli.serve.find_spec", lambda name: None)
    status, _, err = command_line("serve", paths / "base")
    assert status == 2 and "pip install 'depthdial[serve]'" in err
