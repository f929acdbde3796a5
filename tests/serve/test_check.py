"""`depthdial check` against `depthdial serve`: the whole way, over HTTP."""

from __future__ import annotations

import depthdial as dd
from tests.conftest import make_llama
from tests.serve.served import FAMILY, chat_tokenizer

N = 6  # tokens of an answer


def test_a_server_is_checked_against_the_full_model(server, small_task):
    model, tokenizer = make_llama(), chat_tokenizer()
    options = {"task": small_task, "max_new_tokens": N, "keep_text": True}
    full = dd.check(server.url, model, tokenizer, served_model="tiny", **options)
    assert full.scores["same"].mean == full.scores["agreement"].mean == 1 and full.answer == "yes"
    shallow = dd.check(server.url, model, tokenizer, served_model="tiny:mine-4", **options)
    (route,) = (route for route in FAMILY.routes if len(route) == 4)
    chats = [[{"role": "user", "content": example.instruction}] for example in small_task.examples]
    expected = dd.generate(model, tokenizer, messages=chats, depth=route, max_new_tokens=N)
    assert shallow.rows["target_answer"].to_pylist() == [one.text for one in expected]
    assert shallow.rows["target_finish"].to_pylist() == [
        "stop" if one.finish_reason == "eos" else "length" for one in expected
    ]
    assert shallow.scores["same"].mean < 1
