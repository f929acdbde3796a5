from __future__ import annotations

import base64
import socket

import openai
import pytest

from depthdial.errors import InputError
from depthdial.serve.guard import KEYS_VARIABLE, read_keys
from depthdial.serve.settings import ServeSettings
from tests.serve.served import running

KEY = "sk-one"
CHAT = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def locked():
    settings = ServeSettings(max_body_bytes=2000)
    with running(settings=settings, keys=(KEY, "sk-two")) as found:
        yield found


def paths_of(server):
    return [(path, method.upper()) for path, methods in server.app.openapi()["paths"].items() for method in methods]


def test_nothing_but_health_answers_without_a_key(locked):
    others = [
        ("/", "GET"),
        ("/openapi.json", "GET"),
        ("/docs", "GET"),
        ("/nothing", "GET"),
        ("/health/", "GET"),
        ("//health", "GET"),
    ]
    assert len(paths_of(locked)) >= 9
    for path, method in [*paths_of(locked), *others]:
        status = locked.ask(path, CHAT if method == "POST" else None, method=method).status
        assert status == (200 if path == "/health" else 401), path
    for header in ("", "Bearer", "Bearer sk-three", "Bearer sk-on", "sk-one", "Basic !", "Basic c2stb25l", "Bearer \xe9"):
        answer = locked.ask("/v1/models", Authorization=header)
        assert answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key", header


def test_a_key_opens_everything(locked):
    assert locked.client(KEY).models.list().data and locked.client("sk-two").models.list().data
    with pytest.raises(openai.AuthenticationError):
        locked.client("sk-three").models.list()
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    assert locked.ask("/v1/models", Authorization=f"Basic {basic}").status == 200


def test_a_browser_is_asked_for_the_key(locked):
    assert locked.ask("/", Accept="text/html,*/*").headers["www-authenticate"].startswith("Basic")
    assert locked.ask("/v1/models").headers["www-authenticate"] == "Bearer"


def test_bodies_that_are_too_large_or_no_json(locked, server):
    header = {"Authorization": f"Bearer {KEY}"}
    assert locked.ask("/tokenize", {"prompt": "the " * 600}, **header).status == 413
    assert locked.ask("/tokenize", raw=b'{"prompt": "the"}', Content_Type="text/plain", **header).status == 415
    assert locked.ask("/tokenize", {"prompt": "the"}, **header).json["count"] == 1
    for raw in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"', b"[" * 5000, b'{"prompt": "\\ud800"}'):
        answer = server.ask("/v1/completions", raw=raw)
        assert answer.status == 400 and answer.json["error"]["message"], raw


def test_a_body_that_does_not_come(locked, monkeypatch):
    monkeypatch.setattr("depthdial.serve.guard._BODY_SEC", 0.05)
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as connection:
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer sk-one\r\nContent-Length: 20\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_where_keys_come_from(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# ours\nsk-one\n\n sk-two \n")
    assert read_keys(str(file)) == ("sk-one", "sk-two")
    monkeypatch.setenv(KEYS_VARIABLE, "a, b,")
    assert read_keys(None) == ("a", "b")
    monkeypatch.delenv(KEYS_VARIABLE)
    assert read_keys(None) == ()


@pytest.mark.parametrize("text", [None, "", "# none\n", "two words\n", "é\n"])
def test_keys_that_cannot_be_used(tmp_path, text):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match="API key"):
        read_keys(str(file))
