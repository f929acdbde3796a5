"""What every kind of predictor is put through."""

from __future__ import annotations

import pytest

from depthdial.control.predictors.fitting import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
