"""What ran over the text: token by layer, for one answer of a per-token controller."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from depthdial.report.kit.style import BLACK, BLUE, GRAY, SKIPPED, WIDTH_IN, figure_style, new_figure, wrapped
from depthdial.report.study.routes_plot import Color, fill_cells, tick_numbers
from depthdial.rows.gates import GateMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT, _FONT_POINTS, _FONT_ADVANCE = "DejaVu Sans Mono", 6.6, 0.602  # matplotlib brings this font; its letters are so wide
_LETTER_IN = _FONT_POINTS * _FONT_ADVANCE / 72
_LEFT_IN, _RIGHT_IN, _BOTTOM_IN = 0.46, 0.08, 0.34
_TITLE_IN, _TICK_IN = 0.17, 0.14  # a line of the title, the number of a layer
_TEXT_IN, _GAP_IN = 0.17, 0.12  # the tokens under a line of cells, and what is free before the next line
_LETTERS = int((WIDTH_IN - _LEFT_IN - _RIGHT_IN) / _LETTER_IN)
_MOST_LINES, _MOST_LETTERS = 12, 24
_PROMPT = "#9fb3c1"
_SIGNS = {"\n": "↵", "\t": "→", "\r": "↵"}
_NO_GLYPH = "□"
_IS_RUN, _IS_PROMPT = 1.0, 2.0


def draw_gate_map(gate_map: GateMap) -> Figure:
    """Tokens from left to right in their own width, wrapped like text; layers upwards from 0; prompt tokens shaded apart.

    A map of more than 12 lines is cut there, and says so in its title.
    """
    from matplotlib.patches import Patch

    shown = [shown_token(token) for token in gate_map.tokens]
    lines = wrap_tokens([len(text) for text in shown], _LETTERS)
    drawn, cells_in = lines[:_MOST_LINES], max(0.45, 0.036 * gate_map.n_layers)
    cut = f" (the first {drawn[-1][1]} of {len(shown)} tokens)" if len(drawn) < len(lines) else ""
    title = wrapped(map_title(gate_map) + cut)
    top_in = 0.2 + _TITLE_IN * len(title.splitlines())
    height = top_in + len(drawn) * (cells_in + _TEXT_IN) + (len(drawn) - 1) * _GAP_IN + _BOTTOM_IN
    with figure_style():
        figure = new_figure(height)
        figure.set_layout_engine("none")  # every place is given in inches, so that letters fit their columns
        for number, (start, stop) in enumerate(drawn):
            top = height - top_in - number * (cells_in + _TEXT_IN + _GAP_IN)
            widths = [len(text) for text in shown[start:stop]]
            box = (_LEFT_IN / WIDTH_IN, (top - cells_in) / height, sum(widths) * _LETTER_IN / WIDTH_IN, cells_in / height)
            _line(figure.add_axes(box), gate_map, shown, start, stop, int(cells_in / _TICK_IN))
        figure.text(0.01, 1 - 0.07 / height, title, va="top", fontsize=10)
        keys = [(BLUE, "runs"), (SKIPPED, "skipped"), (_PROMPT, "prompt: every layer runs")]
        handles = [
            Patch(facecolor=color, label=label) for color, label in keys if color != _PROMPT or any(gate_map.is_prompt)
        ]
        figure.legend(handles=handles, loc="lower center", ncols=3, handlelength=1, handleheight=1, borderaxespad=0.2)
    return figure


def map_title(gate_map: GateMap) -> str:
    """Whose decisions they are, and how many layers they let run."""
    target = "" if gate_map.target is None else f", target {100 * gate_map.target:g}%"
    mode = "" if gate_map.mode == "none" else f", {gate_map.mode}"
    seed = "" if gate_map.train_seed is None else f", seed {gate_map.train_seed}"
    mean = gate_map.mean_layers
    ran = "no response token" if mean is None else f"{mean:.1f} of {gate_map.n_layers} layers a response token"
    return f"{gate_map.controller}{mode}{target}{seed}: {ran}"


def wrap_tokens(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """(start, stop) of the tokens of each line: as many as fit `room` letters, at least one."""
    lines, start, used = [], 0, 0
    for i, width in enumerate(widths):
        if i > start and used + width > room:
            lines.append((start, i))
            start, used = i, 0
        used += width
    return [*lines, (start, len(widths))]


def shown_token(token: str) -> str:
    """A token as it is written under its column: line breaks as signs, what the font lacks as a box, never empty."""
    text = "".join(_shown(letter) for letter in token) or _NO_GLYPH
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _shown(letter: str) -> str:
    from matplotlib.font_manager import findfont, get_font

    if letter in _SIGNS:
        return _SIGNS[letter]
    is_mark = unicodedata.category(letter)[0] in "CM"  # controls, and marks that would take no width
    return letter if not is_mark and get_font(findfont(_FONT)).get_char_index(ord(letter)) else _NO_GLYPH


def _line(axes: Axes, gate_map: GateMap, shown: Sequence[str], start: int, stop: int, most_ticks: int) -> None:
    edges = np.concatenate([[0], np.cumsum([len(text) for text in shown[start:stop]])]).astype(float)
    is_prompt = np.array(gate_map.is_prompt[start:stop])[:, None]
    grid = np.where(is_prompt, _IS_PROMPT, _IS_RUN) * np.array(gate_map.ran[start:stop], dtype=float)
    fill_cells(axes, grid, edges, _color)
    axes.grid(True, which="minor", color="white", linewidth=0.5)
    axes.set_xticks([])
    tick_numbers(axes, "y", list(range(gate_map.n_layers)), most=most_ticks)
    axes.tick_params(length=0, pad=2, labelsize=7)
    if start == 0:
        axes.set_ylabel("layer", labelpad=2)
    for text, left, prompt in zip(shown[start:stop], edges, is_prompt[:, 0], strict=False):
        axes.annotate(
            *(text, (left, 0)),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            va="top",
            family=_FONT,
            fontsize=_FONT_POINTS,
            color=GRAY if prompt else BLACK,
            annotation_clip=False,
        )


def _color(value: float) -> Color:
    from matplotlib.colors import to_rgb

    return to_rgb(BLUE if value == _IS_RUN else _PROMPT)
