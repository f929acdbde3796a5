from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.serve.settings import ServeSettings


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.25", 0.25), ("0", 0.0), ("100%", 1.0)])
def test_shares(text, share):
    assert ServeSettings(shadow=text).shadow_share == pytest.approx(share)


def test_efforts():
    assert ServeSettings(efforts=("low=uls:50%", " high = full")).effort_depths == {"low": "uls:50%", "high": "full"}
    assert ServeSettings().effort_depths == {"low": "60%", "medium": "80%", "high": "full"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shadow": "2"}, "shadow share '2'"),
        ({"shadow": "few"}, "shadow share 'few'"),
        ({"efforts": ("low",)}, "has no depth"),
        ({"efforts": ("lots=80%",)}, "Unknown reasoning effort 'lots'"),
        ({"port": 70000}, "Invalid port 70000"),
        ({"max_rows": 0}, "Invalid max_rows 0"),
        ({"max_tokens": 0}, "Invalid max_tokens 0"),
        ({"timeout_sec": 0}, "Invalid timeout_sec 0"),
    ],
)
def test_what_cannot_be_used(given, message):
    with pytest.raises(InputError, match=message):
        ServeSettings(**given)
