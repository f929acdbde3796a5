"""The client of OpenAI-style servers over real HTTP: what it asks, what it retries, what it says when it cannot go on."""

from __future__ import annotations

import socket

import pytest

from depthdial.errors import InputError
from depthdial.measure.endpoint import Endpoint, is_url
from tests.measure.servers import serving


@pytest.fixture
def served():
    with serving(lambda prompt, limit: (f"answer to {prompt}", "stop" if limit > 3 else "length")) as one:
        yield one


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_prompts_are_asked_at_once_and_answered_in_order(served, path):
    endpoint = Endpoint.connect(served.url + path)
    assert (endpoint.base, endpoint.model) == (f"{served.url}/v1", "tiny")
    found = endpoint.complete([[5, 6], [7], "the cat"], 4)
    assert [one.text for one in found] == ["answer to [5, 6]", "answer to [7]", "answer to the cat"]
    assert all(one.is_ended and one.seconds > 0 for one in found)
    assert not endpoint.complete([[5]], 3)[0].is_ended
    common = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    assert all(body.items() >= common.items() for body in served.asked[:3])


def test_a_busy_server_is_asked_again(served):
    served.failures = [(429, {"Retry-After": "0.1"}, b""), (503, {"Retry-After": "0.1"}, b"starting")]
    assert Endpoint.connect(served.url).complete([[5]], 4)[0].text == "answer to [5]"
    assert len(served.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            400,
            b'{"error": {"message": "prompt is too long."}}',
            "answered 400 (prompt is too long): check the server, or send",
        ),
        (400, b'{"error": "no ids here"}', "answered 400 (no ids here)"),
        (404, b"not json", "answered 404 (not json): check the URL and the model's name"),
        (422, b"[1]", "answered 422"),
        (403, b"", "answered 403 (Forbidden): name the environment variable of the key"),
    ],
)
def test_a_refusal_is_one_sentence_and_not_asked_again(served, status, body, told):
    served.failures = [(status, {}, body)]
    with pytest.raises(InputError) as caught:
        Endpoint.connect(served.url).complete([[5]], 4)
    assert told in str(caught.value) and str(caught.value).count("\n") == 0
    assert len(served.asked) == 1


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"<html>"])
def test_what_is_no_completion_is_refused(served, body):
    served.failures = [(200, {}, body)]
    with pytest.raises(InputError, match=r"OpenAI-style|gave no answer"):
        Endpoint.connect(served.url).complete([[5]], 4)


def test_a_key_is_sent_where_one_is_given(served):
    served.key = "secret"
    with pytest.raises(InputError, match=r"answered 401 \(No key\): name the environment variable of the key") as caught:
        Endpoint.connect(served.url, api_key="another")
    assert "another" not in str(caught.value)
    assert Endpoint.connect(served.url, api_key="secret").complete([[5]], 4)[0].is_ended


def test_one_of_several_models_must_be_named(served):
    served.models = ["tiny", "tiny:80%"]
    with pytest.raises(InputError, match=r"serves 2 models \(tiny, tiny:80%\): say which with served_model"):
        Endpoint.connect(served.url)
    assert Endpoint.connect(served.url, "tiny:24").model == "tiny:24"


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"gave no answer \(.*refused\): start the server, or check the URL"):
            Endpoint.connect(url)


def test_the_environments_proxy_is_not_asked_for_this_machine(served, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Endpoint.connect(served.url).model == "tiny"


@pytest.mark.parametrize("url", ["http://", "http:///v1", "http://user:pass@host/v1", "http://host/v1?x=1"])
def test_what_is_no_server(url):
    with pytest.raises(InputError, match="is not one of a server"):
        Endpoint.connect(url)


def test_urls_and_files():
    assert is_url("http://localhost:8000") and is_url("HTTPS://host/v1")
    assert not is_url("folder/http") and not is_url("model.gguf")
