from __future__ import annotations

import json

import pytest

from depthdial.errors import InputError
from depthdial.search.method import Found, Memory


def test_memory_is_of_one_search_and_adds_up_its_time(tmp_path):
    path = tmp_path / "routes.json.unfinished"
    memory = Memory.open(path, {"method": "a"})
    memory.keep({"harm": [1.0]})
    again = Memory.open(path, {"method": "a"})
    assert again.state == {"harm": [1.0]} and 0 < again.search_sec == memory.search_sec
    again.keep({"harm": [1.0, 2.0]})
    assert again.search_sec > memory.search_sec
    assert Memory.open(path, {"method": "b"}).state == {}
    again.clear()
    assert not path.exists() and Memory.open(path, {"method": "a"}).state == {}


def test_a_damaged_memory_is_told(tmp_path):
    path = tmp_path / "routes.json.unfinished"
    path.write_text(json.dumps({"settings": {}, "state": 3}))
    with pytest.raises(InputError, match="damaged unfinished search: delete it"):
        Memory.open(path, {})


def test_nested_is_every_set_inside_the_next():
    assert Found(((1,), (2, 1)), (), 1).is_nested
    assert not Found(((1,), (2, 3)), (), 1).is_nested
