"""One call draws every result that has a figure, and saves it where it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import depthdial as dd
from depthdial.errors import InputError
from tests.report.bench.folders import forecast_of, with_baseline


def test_an_oracles_curve_is_drawn_and_saved(study: Any, tmp_path: Path) -> None:
    figure = dd.plot(study.curves["rouge_l"], tmp_path / "oracle.svg")
    assert len(figure.axes) == 2
    assert (tmp_path / "oracle.svg").read_bytes().startswith(b"<?xml")


def test_sampled_answers_and_similarity_have_figures_too(study: Any, sampled: Any) -> None:
    assert "predictable" in dd.plot(sampled.curve).legends[0].get_title().get_text()
    assert "cosine" in dd.plot(study.similarity).get_suptitle().lower()


def test_measured_time_and_forecasts_have_figures_too() -> None:
    assert len(dd.plot(with_baseline()).axes) == 2
    assert "off: expected" in dd.plot(forecast_of(0.1)).get_suptitle()


def test_what_has_no_figure_is_refused(study: Any, tmp_path: Path) -> None:
    for wrong in (3, "oracle.json", {}):
        with pytest.raises(InputError, match="Cannot plot"):
            dd.plot(wrong)
    with pytest.raises(InputError, match=r"ends in \.png, \.svg or \.pdf"):
        dd.plot(study.curves["rouge_l"], tmp_path / "oracle.txt")
