"""Gate maps: what is filled, how the text is wrapped, and what a font cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from depthdial.report.gates.map import draw_gate_map, map_title, shown_token, wrap_tokens
from depthdial.report.kit.style import BLUE, save_figure
from tests.report.gates.studies import gate_map


def test_cells_are_filled_where_the_layer_ran() -> None:
    found = gate_map(n_layers=6, n_tokens=9, n_prompt=3)
    (axes,) = draw_gate_map(found).axes
    (cells,) = axes.collections
    edges, filled = [0], {}
    for token in found.tokens:
        edges.append(edges[-1] + len(shown_token(token)))
    for path, color in zip(cells.get_paths(), cells.get_facecolors(), strict=True):
        left, bottom, right, top = path.get_extents().extents
        assert edges.index(round(right)) == edges.index(round(left)) + 1  # a token's own width
        for layer in range(round(bottom + 0.5), round(top + 0.5)):
            filled[edges.index(round(left)), layer] = to_hex(color).upper()
    assert set(filled) == {(i, layer) for i, layers in enumerate(found.ran) for layer in range(6) if layers[layer]}
    assert all((color == BLUE) == (token >= 3) for (token, _), color in filled.items())
    assert [text.get_text() for text in axes.texts] == [shown_token(token) for token in found.tokens]


def test_long_text_is_wrapped_and_very_long_text_cut() -> None:
    two = draw_gate_map(gate_map(n_tokens=40))
    assert len(two.axes) == 2 and sum(len(axes.texts) for axes in two.axes) == 40
    cut = draw_gate_map(gate_map(n_tokens=500))
    assert len(cut.axes) == 12
    assert any("of 500 tokens)" in " ".join(text.get_text().split()) for text in cut.texts)


def test_a_map_without_prompt_has_no_key_for_it() -> None:
    figure = draw_gate_map(gate_map(n_prompt=0, mode="argmax"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["runs", "skipped"]


def test_the_title_tells_whose_decisions_they_are() -> None:
    title = map_title(gate_map("fixed", "argmax", n_layers=12))
    assert title == "fixed, argmax, target 50%, seed 0: 7.0 of 12 layers a response token"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 60))
def test_lines_hold_every_token_once_and_fit(widths: list[int], room: int) -> None:
    lines = wrap_tokens(widths, room)
    assert [i for start, stop in lines for i in range(start, stop)] == list(range(len(widths)))
    for start, stop in lines:
        assert sum(widths[start:stop]) <= room or stop == start + 1


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", " the"),
        ("\n", "↵"),
        ("a\tb", "a→b"),
        ("", "□"),
        ("\x00", "□"),
        ("日本", "□□"),
        ("😀", "□"),
        ("é", "é"),
        ("x" * 40, "x" * 23 + "…"),
        ("$x$ <&>", "$x$ <&>"),
    ],
)
def test_tokens_are_written_as_the_font_can(token: str, shown: str) -> None:
    assert shown_token(token) == shown


def test_strange_tokens_are_drawn_without_a_warning(tmp_path: Path) -> None:
    tokens = ["日本", "😀", "\n\n", "$x^$", "<&>", "\x07", "e\u0301", "ﷺ", "x" * 200]
    found = gate_map(tokens=tokens, n_prompt=1)
    for ending in (".png", ".svg"):
        one, two = (save_figure(draw_gate_map(found), tmp_path / f"{name}{ending}") for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_deep_models_and_single_tokens_can_be_drawn(tmp_path: Path) -> None:
    assert save_figure(draw_gate_map(gate_map(n_layers=80, n_tokens=1, n_prompt=0)), tmp_path / "deep.png").exists()
    assert save_figure(draw_gate_map(gate_map(n_layers=2, n_tokens=2, n_prompt=2)), tmp_path / "prompt.png").exists()
