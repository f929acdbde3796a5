from __future__ import annotations

import pytest

from tests.serve.served import running


@pytest.fixture(scope="session")
def server():
    """One server for all tests that change nothing of it."""
    with running() as found:
        yield found


@pytest.fixture(scope="session")
def client(server):
    return server.client()
