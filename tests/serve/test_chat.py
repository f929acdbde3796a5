"""`/v1/chat/completions`, asked by the openai client."""

from __future__ import annotations

import json

import openai
import pytest

from tests.serve.served import until

HELLO = [{"role": "user", "content": "the cat sat"}]


def ask(client, **given):
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 6, **given})


def test_an_answer_is_the_engines(server, client):
    engine = server.engine
    for depth in ("full", "mine-3", "uls:50%", "0-2,5", "lossless:uls:50%"):
        answer = ask(client, extra_body={"depth": depth})
        chosen = server.app.state.service.ready.depths.read(depth)
        own = engine.submit(messages=HELLO, depth=chosen.depth, max_new_tokens=6).result()
        assert answer.choices[0].message.content == own.text and answer.choices[0].message.role == "assistant"
        assert answer.usage.completion_tokens == len(own.tokens) and answer.usage.prompt_tokens == 4
        told = answer.usage.depthdial
        assert told["depth"] == depth and told["layers"] == 6 and told["layers_run"] == own.layers_run
        assert told["route"] == own.route.name


def test_depth_by_model_id_and_effort(client):
    assert ask(client, model="tiny:mine-4").usage.depthdial["route_layers"] == "0-2,5"
    assert ask(client, reasoning_effort="low").usage.depthdial["layers_run"] == 3
    assert ask(client, reasoning_effort="high").usage.depthdial["route_layers"] == "0-5"


def test_a_stream_is_the_same_answer(client):
    options = {"temperature": 1.0, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2, "extra_body": {"depth": "mine-3"}}
    whole = ask(client, **options)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(
        update={"depthdial": chunks[-1].usage.depthdial}
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        own = [one.choices[0] for one in chunks[:-1] if one.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant" and all(one.delta.role is None for one in own[1:])
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        told = [entry for one in own if one.logprobs for entry in one.logprobs.content]
        assert told == choice.logprobs.content and len(told[0].top_logprobs) == 2
        assert [one.finish_reason for one in own] == [None] * (len(own) - 1) + [choice.finish_reason]


def test_a_stream_without_usage_has_none(server):
    body = {"messages": HELLO, "stream": True, "max_tokens": 3, "temperature": 0}
    answer = server.ask("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]" and not any("usage" in json.loads(line) for line in lines[:-1])


def test_how_answers_end(client):
    assert ask(client, max_tokens=3).choices[0].finish_reason == "length"
    words = ask(client, max_tokens=12).choices[0].message.content.split()
    stop = next(word for word in words[1:] if word not in words[0])
    stopped = ask(client, max_tokens=12, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].stop_reason == stop
    assert stopped.choices[0].message.content.split() == words[: words.index(stop)]
    kept = ask(client, max_tokens=12, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content.split() == words[: words.index(stop) + 1]
    pieces = "".join(one.choices[0].delta.content or "" for one in ask(client, max_tokens=12, stop=[stop], stream=True))
    assert pieces == stopped.choices[0].message.content


def test_an_end_token_ends_an_answer_and_is_no_part_of_it(server, client):
    first = ask(client, max_tokens=1, logprobs=True).choices[0]
    token = server.ask("/tokenize", {"prompt": first.message.content}).json["tokens"][-1]
    ended = ask(client, logprobs=True, extra_body={"stop_token_ids": [token]})
    assert ended.choices[0].finish_reason == "stop" and ended.choices[0].logprobs.content == []
    assert ended.usage.completion_tokens == 1


def test_a_stop_string_counts_in_the_answer_alone(client):
    """The prompt ends with a word that the stop string begins with; transformers would end the answer at once."""
    said = ask(client, max_tokens=4).choices[0].message.content
    first = said.split()[0]
    answer = ask(client, max_tokens=4, stop=[f"to {first}"])
    assert answer.choices[0].message.content == said and answer.choices[0].finish_reason == "length"


def test_seeds_penalties_and_biases(server, client):
    drawn = [ask(client, temperature=1.0, seed=5, max_tokens=8).choices[0].message.content for _ in range(2)]
    assert drawn[0] == drawn[1]
    said = ask(client, max_tokens=1).choices[0].message.content
    token = server.ask("/tokenize", {"prompt": said}).json["tokens"][-1]
    assert ask(client, max_tokens=1, logit_bias={str(token): -100}).choices[0].message.content != said
    plain, punished = (ask(client, max_tokens=20, frequency_penalty=p).choices[0].message.content.split() for p in (0, 2))
    assert len(set(punished)) > len(set(plain))


def test_parts_and_roles(client):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat sat"}]
    assert ask(client, messages=[{"role": "user", "content": parts}]).usage.prompt_tokens == 4
    long = [{"role": "developer", "content": "it"}, *HELLO, {"role": "assistant", "content": "on"}]
    assert ask(client, messages=long).usage.prompt_tokens == 5  # the last message goes on: no cue


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"extra_body": {"depht": "full"}}, "depht", "unknown_parameter"),
        ({"extra_body": {"depth": "nothing"}}, "depth", "invalid"),
        ({"extra_body": {"depth": True}}, "depth", "invalid_type"),
        ({"model": "other"}, "model", "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "invalid_type"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"n": 2}, None, "invalid"),
        ({"n": 0}, "n", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid"),
        ({"max_completion_tokens": 4}, "max_tokens", "invalid"),
        ({"max_tokens": 5000}, "max_tokens", "invalid"),
        ({"stop": [""]}, "stop", "invalid"),
        ({"logit_bias": {"999": 1}}, None, "invalid"),
        ({"messages": []}, "messages", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None, None),
        ({"messages": [{"role": "user", "content": "the " * 200}]}, "messages", "context_length_exceeded"),
        ({"extra_body": {"continue_final_message": True}}, "continue_final_message", "unsupported_value"),
    ],
)
def test_what_is_refused(client, given, param, code):
    with pytest.raises(openai.APIStatusError) as found:
        ask(client, **given)
    error = found.value
    assert error.status_code == (404 if code == "model_not_found" else 400)
    assert param is None or error.param == param
    assert code is None or error.code == code
    message = error.body["message"]
    assert message[0].isupper() and message.endswith((".", "?")) and "\n" not in message


@pytest.mark.parametrize("stream", [False, True])
def test_work_stops_when_the_client_goes(server, stream):
    """Streaming or not, the engine's row is free again."""
    before = server.metric("depthdial_requests_cancelled_total")
    with server.client().with_options(timeout=0.4) as impatient:
        # A request of hundreds of answers' tokens, which takes longer than the client waits.
        given = {"max_tokens": 120, "temperature": 1.0, "n": 64, "extra_body": {"ignore_eos": True}}
        if stream:
            answer = ask(impatient, stream=True, **given)
            next(iter(answer))
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                ask(impatient, **given)
    until(lambda: server.metric("depthdial_requests_cancelled_total") > before)
    until(lambda: server.engine.stats().running == server.engine.stats().waiting == 0)
    assert server.app.state.service.ready.gate.n_held == 0
