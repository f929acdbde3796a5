from __future__ import annotations

import asyncio
import threading
import time

import openai
import pytest

import depthdial as dd
from depthdial.serve.errors import ApiError
from depthdial.serve.running import Gate, Watch
from depthdial.serve.settings import ServeSettings
from tests.serve.served import running, served, until

HELLO = [{"role": "user", "content": "the cat"}]
LONG = {"model": "tiny", "messages": HELLO, "max_tokens": 120, "extra_body": {"ignore_eos": True}}


def test_a_gate_counts_answers():
    gate = Gate(2, 1)
    with gate.hold(2):
        with pytest.raises(ApiError) as found, gate.hold(2):
            pass
        assert found.value.status == 429 and int(found.value.headers["Retry-After"]) >= 1
        with gate.hold(1):
            assert gate.n_held == 3
    assert gate.n_held == 0
    with pytest.raises(ApiError, match="holds 3") as found, gate.hold(4):
        pass
    assert found.value.status == 400


def test_a_busy_server_says_when_to_come_again():
    settings = ServeSettings(max_rows=1, max_waiting=1)
    with running(settings=settings) as server, server.client() as client:
        held = [client.chat.completions.create(**LONG, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as found:
            client.chat.completions.create(**LONG)
        assert found.value.status_code == 429 and int(found.value.response.headers["retry-after"]) >= 1
        assert server.metric("depthdial_http_responses_total", status="429") == 1
        for stream in held:
            stream.close()
        until(lambda: server.app.state.service.ready.gate.n_held == 0)
        assert client.chat.completions.create(**{**LONG, "max_tokens": 1}).choices


@pytest.fixture
def slow(monkeypatch):
    """An engine whose answers wait for the test before their second token."""
    goes_on = threading.Event()
    from depthdial.engine.scheduler import Scheduler

    step = Scheduler._step

    def waiting(self):
        goes_on.wait(20)
        step(self)

    monkeypatch.setattr(Scheduler, "_step", waiting)
    yield goes_on
    goes_on.set()


def test_a_request_that_takes_too_long_is_stopped(slow):
    settings = ServeSettings(timeout_sec=0.2, keep_alive_sec=0.05)
    with running(settings=settings) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError) as found:
            client.chat.completions.create(**LONG)
        assert found.value.status_code == 504 and found.value.code == "timeout"
        with pytest.raises(openai.APIError, match="took longer than") as streamed:
            list(client.chat.completions.create(**LONG, stream=True))
        assert streamed.value.code == "timeout"
        answer = server.ask(
            "/v1/chat/completions", {"messages": HELLO, "max_tokens": 20, "stream": True, "ignore_eos": True}
        )
        assert answer.status == 200 and answer.text.count(": keep-alive\n\n") >= 2
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' in answer.text
        slow.set()
        until(lambda: server.engine.stats().running == 0)
        assert server.metric("depthdial_request_success_total", finished_reason="error") == 3


def test_a_failing_pass_is_an_error_event_or_a_500(monkeypatch):
    from depthdial.engine.scheduler import RowGroup

    def broken(self):
        raise ValueError("broken")

    with running() as server, server.client() as client:
        monkeypatch.setattr(RowGroup, "step", broken)
        with pytest.raises(openai.InternalServerError, match="broken"):
            client.chat.completions.create(**LONG)
        with pytest.raises(openai.APIError, match="broken"):
            list(client.chat.completions.create(**LONG, stream=True))
        monkeypatch.undo()
        assert client.chat.completions.create(**{**LONG, "max_tokens": 2}).choices


def test_a_shutdown_ends_requests_with_503(slow):
    ready = served()

    async def ask():
        watch = Watch([ready.engine.submit("the cat", max_new_tokens=20, eos_token_id=None)], 20, 20)
        threading.Thread(target=lambda: (time.sleep(0.1), slow.set(), ready.engine.close(cancel=True))).start()
        await watch.finished()

    with pytest.raises(ApiError, match="shutting down") as found:
        asyncio.run(ask())
    assert found.value.status == 503


def test_news_wake_the_loop_once_until_it_looks(model, tokenizer):
    async def ask():
        with dd.Engine(model, tokenizer) as engine:
            watch = Watch([engine.submit(text, max_new_tokens=8) for text in ("the cat", "a dog")], 20, 20)
            found = [news async for news in watch.events()]
            return found, watch

    found, watch = asyncio.run(ask())
    for number, request in enumerate(watch.requests):
        own = [event for place, event in found if place == number]
        assert tuple(token for event in own for token in event.tokens) == request.result().tokens
    assert watch.first_token_sec > 0 and not watch.cancel()
