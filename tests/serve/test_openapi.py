"""Whatever the description of the interface allows, and much that it does not: the server never fails on it."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from depthdial.serve.schemas import _NEUTRAL

pytestmark = pytest.mark.slow
N_EXAMPLES = 150
QUIET = {"max_examples": N_EXAMPLES, "deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}


def tame(body, depth):
    """The same with a model and a depth that there are, and no field that is refused whatever it says."""
    kept = {name: value for name, value in body.items() if name not in _NEUTRAL}
    kept |= {"model": "tiny", "depth": depth, "reasoning_effort": None}
    if not kept.get("stream"):
        kept.pop("stream_options", None)
    if isinstance(kept.get("stop"), list):
        kept["stop"] = [text for text in kept["stop"] if text]
    return kept


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_makes_the_server_fail(server, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found: Counter[tuple[str, int]] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]),
            depth=st.sampled_from(["full", "mine-3", "lossless:uls:50%", "rls:3"]),
            is_tame=st.booleans(),
        )
        @hypothesis.settings(**QUIET)
        def ask(case, depth, is_tame):
            if is_tame and isinstance(case.body, dict) and case.path.startswith("/v1/"):
                case.body = tame(case.body, depth)
            response = case.call(timeout=60)
            found[case.path, response.status_code] += 1
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                message = response.json()["error"]["message"]
                assert message[0].isupper() and message.endswith((".", "?")), message
            assert '"error":{' not in response.text or response.status_code >= 400, response.text

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # nothing about a GET without parameters can be wrong
            assert mode == "NEGATIVE" and operation.method.upper() == "GET"
    if mode == "POSITIVE":
        assert found["/v1/chat/completions", 200] and found["/v1/completions", 200], found
    else:
        assert found["/v1/chat/completions", 400] and found["/v1/completions", 400], found
