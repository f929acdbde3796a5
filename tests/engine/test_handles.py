from __future__ import annotations

import threading

import pytest
import torch

from depthdial.engine.generate import Generation
from depthdial.engine.handles import EngineRequest, RequestFailedError, failure, is_out_of_memory
from depthdial.errors import InputError
from depthdial.routes import Route


def answered(text="the cat"):
    return Generation("", text, (4, 6), Route((0,), 1), "eos", 0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("not enough memory: you tried to allocate"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_a_failure_is_one_sentence_and_holds_no_frames():
    try:
        raise KeyError("x\n  y")
    except KeyError as error:
        found = failure(error, 3)
    assert str(found) == "The request failed after 3 tokens (KeyError: 'x\\n y'): submit it again."
    assert found.__cause__.__traceback__ is None and "test_handles" in found.__notes__[0]
    assert str(failure(ValueError(), 0)) == "The request failed after 0 tokens (ValueError): submit it again."
    bad = InputError("Bad.")
    assert failure(bad, 1) is bad


def test_text_comes_in_whole_characters(tokenizer):
    class Bytes:
        def decode(self, tokens, **_):
            return bytes(tokens).decode("utf-8", errors="replace")

    request = EngineRequest(Bytes(), 1, lambda: None)
    pieces: list[str] = []
    reader = threading.Thread(target=lambda: pieces.extend(request))
    reader.start()
    for token in "aé€".encode():
        request.add_token(0, token)
    request.finish(0, answered(), lambda: None)
    reader.join(20)
    assert "".join(pieces) == "aé€" == "".join(request)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_the_last_of_several_answers_is_counted_once(tokenizer):
    counts: list[str] = []
    request = EngineRequest(tokenizer, 2, lambda: counts.append("cancelled"))
    request.finish(1, answered("b"), lambda: counts.append("done"))
    assert not request.done and not counts
    request.finish(0, answered("a"), lambda: counts.append("done"))
    assert [one.text for one in request.result()] == ["a", "b"]
    request.fail(ValueError(), lambda: counts.append("failed"))
    assert not request.cancel() and counts == ["done"]


def test_nothing_comes_after_an_error_or_a_cancel(tokenizer):
    counts: list[str] = []
    request = EngineRequest(tokenizer, 1, lambda: counts.append("cancelled"))
    request.add_token(0, 5)
    request.fail(failure(ValueError("x"), 1), lambda: counts.append("failed"))
    request.finish(0, answered(), lambda: counts.append("done"))
    with pytest.raises(RequestFailedError):
        request.result()
    pieces = iter(request)
    assert next(pieces) == "a"
    with pytest.raises(RequestFailedError):
        next(pieces)
    other = EngineRequest(tokenizer, 1, lambda: counts.append("cancelled"))
    assert other.cancel() and not other.cancel()
    other.finish(0, answered(), lambda: counts.append("done"))
    other.fail(ValueError(), lambda: counts.append("failed"))
    with pytest.raises(InputError, match="cancelled after 0 tokens"):
        other.result()
    assert counts == ["failed", "cancelled"]
