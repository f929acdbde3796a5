from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.engine.events import AnswerLog, EventReader, TextSoFar
from tests.tiny import byte_tokenizer


def test_text_comes_in_whole_characters_and_adds_up():
    tokenizer = byte_tokenizer()
    words = "a é € 🙂 ab"
    text = TextSoFar(tokenizer)
    tokens = tokenizer.encode(words)
    pieces = [text.add([token]) for token in tokens]
    assert len(tokens) > len(words) and "".join(pieces) + text.end() == words
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_told_there():
    tokenizer = byte_tokenizer()
    text = TextSoFar(tokenizer)
    tokens = tokenizer.encode("a€")[:-1]
    assert text.add(tokens) == "" and text.end() == "a\N{REPLACEMENT CHARACTER}" and text.end() == ""


def test_events_tell_tokens_logprobs_and_ends_of_all_answers(model, tokenizer):
    options = {"max_new_tokens": 4, "do_sample": True, "seed": 1, "n": 2, "logprobs": 1}
    with dd.Engine(model, tokenizer) as engine:
        request = engine.submit("the cat", depth="uls:50%", **options)
        events = list(request.events())
        again = list(request.events())
        answers = request.result()
    for place, answer in enumerate(answers):
        for seen in (events, again):
            own = [event for event in seen if event.place == place]
            assert tuple(token for event in own for token in event.tokens) == answer.tokens
            assert tuple(one for event in own for one in event.logprobs) == answer.logprobs
            assert "".join(event.text for event in own) == answer.text
            assert [event.answer for event in own if event.answer] == [answer]
    assert request.prompt_ids == tuple(tokenizer("the cat")["input_ids"])


def test_a_listener_hears_what_came_before_it_and_after():
    log, heard = AnswerLog(1), []
    log.listen(lambda: heard.append("early"))
    assert not heard
    with log.changed:
        log.tokens[0].append(5)
    log.tell()
    log.listen(lambda: heard.append("late"))
    assert heard == ["early", "late"]


def test_a_reader_takes_without_waiting(tokenizer):
    log = AnswerLog(1)
    reader = EventReader(log, tokenizer)
    assert reader.take() == [] and not reader.is_over
    with log.changed:
        log.tokens[0] += [4, 6]
        log.error = ValueError("x")
    log.tell()
    (event,) = reader.take()
    assert event.tokens == (4, 6) and event.text == "the cat" and reader.is_over
    with pytest.raises(ValueError, match="x"):
        list(EventReader(log, tokenizer))


def test_a_cancelled_request_ends_its_iteration(tokenizer):
    log = AnswerLog(1)
    log.tokens[0].append(4)
    log.is_cancelled = True
    assert [event.text for event in EventReader(log, tokenizer)] == ["the"]
