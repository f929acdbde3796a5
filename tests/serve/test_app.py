from __future__ import annotations

import json
import threading

import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.serve.service import Served, Service
from depthdial.serve.settings import ServeSettings
from tests.serve.served import FAMILY, chat_tokenizer, running, served, until


def test_health_is_503_until_the_model_is_there():
    goes_on = threading.Event()

    def load():
        goes_on.wait(20)
        return served()

    with running(load) as server:
        assert server.ask("/health").status == 503 and server.ask("/health").json == {"status": "loading"}
        answer = server.ask("/v1/completions", {"prompt": "the cat"})
        assert answer.status == 503 and answer.headers["retry-after"] and answer.json["error"]["code"] == "model_not_ready"
        goes_on.set()
        until(lambda: server.ask("/health").status == 200)
        assert server.ask("/v1/completions", {"prompt": "the cat"}).status == 200


def test_a_model_that_cannot_be_loaded_ends_the_server():
    failed = threading.Event()

    def load():
        raise InputError("There is no such model.")

    with running(load, on_failure=failed.set) as server:
        assert failed.wait(10) and server.ask("/health").json == {"status": "failed"}
        assert str(server.app.state.service.failure) == "There is no such model."


def test_models(server, client):
    ids = [one.id for one in client.models.list().data]
    assert ids == ["tiny", "tiny:mine-3", "tiny:mine-4", "tiny:60%", "tiny:80%", "tiny:lossless"]
    assert client.models.retrieve("tiny:uls:50%").depthdial["route_layers"] == "0,2,4"
    assert server.ask("/v1/models/other").json["error"]["code"] == "model_not_found"
    assert server.ask("/v1/models").json["data"][1]["depthdial"]["layers_run"] == 3


def test_tokens_and_back(server):
    found = server.ask("/tokenize", {"prompt": "the cat"}).json
    assert found == {"count": 2, "max_model_len": 128, "tokens": [4, 6]}
    assert server.ask("/detokenize", {"tokens": [4, 6]}).json == {"prompt": "the cat"}
    chat = {"messages": [{"role": "user", "content": "the cat"}]}
    assert server.ask("/tokenize", chat).json["count"] == 3
    assert server.ask("/tokenize", {}).status == 400 and server.ask("/tokenize", {**chat, "prompt": "x"}).status == 400
    assert server.ask("/detokenize", {"tokens": [10**30]}).status == 400
    assert server.ask("/tokenize", {"prompt": ""}).json["count"] == 0
    assert server.ask("/tokenize", {"prompt": "the cat", "add_special_tokens": False}).json["tokens"] == [4, 6]
    assert server.ask("/tokenize", {**chat, "add_special_tokens": True}).status == 400
    told = server.ask("/tokenizer_info").json
    assert told["eos_token"] == "</s>" and "messages" in told["chat_template"]


def test_others(server):
    assert server.ask("/version").json["version"]
    assert server.ask("/nothing").json["error"]["type"] == "not_found_error"
    assert server.ask("/v1/models", {}).status == 405
    paths = json.loads(server.ask("/openapi.json").text)["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/health", "/metrics", "/tokenize"} <= paths.keys()


def test_the_model_is_bit_identical_afterwards(model, weights_of, assert_same):
    before = weights_of(model)
    with running(Served.of(model, chat_tokenizer(), "tiny", families=[FAMILY])) as server:
        body = {"prompt": "the cat", "depth": "mine-3", "max_tokens": 4, "echo": True, "logprobs": 1}
        assert server.ask("/v1/completions", body).status == 200
    assert_same(before, weights_of(model))


def test_the_end_closes_the_engine():
    source = served()
    with running(source):
        pass
    with pytest.raises(dd.InputError, match="closed"):
        source.engine.submit("the cat")


def test_a_server_that_ends_while_it_loads_keeps_nothing():
    goes_on, made = threading.Event(), []

    def load():
        goes_on.wait(20)
        made.append(served())
        return made[0]

    service = Service(load, ServeSettings())
    service.start()
    service.close()
    goes_on.set()
    service._thread.join(20)
    with pytest.raises(dd.InputError, match="closed"):
        made[0].engine.submit("the cat")
