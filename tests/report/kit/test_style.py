"""Looks, titles and saving."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from depthdial.errors import InputError
from depthdial.report.kit.style import figure_style, headed, looks, new_figure, save_figure, shortened, wrapped


def test_every_family_looks_different_in_colour_marker_and_line_together() -> None:
    found = looks(["full", "uls", "unified", "rls", "rls-wo1", "ee", "listed", "greedy-kl", "beam"])
    assert len({(look.marker, str(look.line)) for look in found.values()}) == 9  # in grayscale too
    assert len({look.label for look in found.values()}) == 9
    assert found["greedy-kl"].label == "greedy-kl, searched"


def test_long_names_and_titles_fit() -> None:
    assert shortened("a" * 40) == "a" * 21 + "…"
    assert shortened("uls:6") == "uls:6"
    assert max(map(len, wrapped("word " * 40).splitlines())) <= 92


def test_a_users_style_neither_shows_nor_is_lost(tmp_path: Path) -> None:
    def saved(name: str) -> bytes:
        with figure_style():
            figure = new_figure(2.0)
            figure.add_subplot().plot([0, 1], [0, 1])
            headed(figure, "A $dollar$ & <angle>")
        return save_figure(figure, tmp_path / name).read_bytes()

    plain = saved("plain.svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
        assert saved("styled.svg") == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert b"A $dollar$ &amp; &lt;angle&gt;" in plain


def test_png_is_200_dots_an_inch(tmp_path: Path) -> None:
    with figure_style():
        figure = new_figure(2.0, 3.0)
    data = save_figure(figure, tmp_path / "a.png").read_bytes()
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (600, 400)


def test_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with figure_style():
        figure = new_figure(2.0)
    with pytest.raises(InputError, match="ends in"):
        save_figure(figure, tmp_path / "a.bmp")
    assert list(tmp_path.iterdir()) == []
