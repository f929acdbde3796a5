"""Pages and tables of these tests take few resamples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from depthdial.stats import equivalence


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equivalence, "N_DRAWS", 200)
        yield
