"""Whatever the description of the interface allows, and much that it does not: the server never fails on it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_no_request_makes_the_server_fail(server):
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    import hypothesis

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        def ask(case):
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        ask()
