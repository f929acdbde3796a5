"""Curves as pandas tables, for whoever has pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from depthdial.errors import InputError


def as_frame(columns: Mapping[str, np.ndarray | None]) -> Any:
    """A pandas.DataFrame of the columns that there are; InputError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError("The package pandas is not installed: pip install pandas, or use to_dict().") from None
    return pandas.DataFrame({name: column for name, column in columns.items() if column is not None})


def ends(interval: np.ndarray | None, name: str) -> dict[str, np.ndarray | None]:
    """An (n, 2) interval as two columns."""
    low, high = (None, None) if interval is None else interval.T
    return {f"{name}_low": low, f"{name}_high": high}
