"""Cost-performance curves and differences: what is drawn is what the rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from depthdial.errors import InputError
from depthdial.report.gates.plot import draw_differences, draw_gates, draw_inputs, most_compared_target
from depthdial.report.gates.summary import GateCell, gather_gates
from depthdial.report.gates.tables import differences_table
from depthdial.report.kit.style import save_figure
from tests.report.gates.studies import gate_rows


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return gate_rows(n_sequences=8)


@pytest.fixture(scope="module")
def cells(rows: pa.Table) -> list[GateCell]:
    return gather_gates(rows)


def _labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_panel_for_each_metric_and_mode(cells: list[GateCell]) -> None:
    figure = draw_gates(cells)
    assert len(figure.axes) == 6
    assert [axes.get_title("left") for axes in figure.axes[:2]] == [
        "Sampled: each gate draws its decision",
        "Argmax: each gate takes the likelier one",
    ]
    assert [figure.axes[i].get_ylabel() for i in (0, 2, 4)] == [
        "ROUGE-L (points)",
        "NLL (nats per token)",
        "greedy agreement",
    ]
    assert len(_labels(figure)) == 10


def test_points_are_costs_and_means(cells: list[GateCell]) -> None:
    axes = draw_gates(cells).axes[1]
    drawn = {tuple(np.round(line.get_xdata(), 6)): np.asarray(line.get_ydata()) for line in axes.lines}
    for name in ("hidden", "static"):
        mine = sorted(
            (c for c in cells if c.controller == name and c.mode in ("argmax", "none")), key=lambda cell: cell.cost
        )
        found = drawn[tuple(np.round([100 * cell.cost for cell in mine], 6))]
        assert found == pytest.approx([cell.mean("rouge_l") for cell in mine])


def test_two_targets_may_have_come_to_one_cost(rows: pa.Table) -> None:
    """As a static route does, whose layers are whole."""
    column = rows.column_names.index("layers_run")
    controllers, layers = rows["controller"].to_pylist(), rows["layers_run"].to_pylist()
    layers = [6.0 if name == "static" else n for name, n in zip(controllers, layers, strict=True)]
    assert draw_gates(gather_gates(rows.set_column(column, "layers_run", pa.array(layers, pa.float64())))).axes


def test_one_mode_alone_is_one_column() -> None:
    rows = gate_rows(n_sequences=4, seeds=(0, 1))
    kept = rows.filter(pa.array([mode != "argmax" for mode in rows["mode"].to_pylist()]))
    assert len(draw_gates(gather_gates(kept)).axes) == 3
    untrained = rows.filter(pa.array([mode == "none" for mode in rows["mode"].to_pylist()]))
    assert draw_gates(gather_gates(untrained)).axes[0].get_title("left") == "Controllers without chance"


def test_without_references_there_is_only_agreement() -> None:
    figure = draw_gates(gather_gates(gate_rows(n_sequences=3, seeds=(0,), references=False)))
    assert [axes.get_ylabel() for axes in figure.axes] == ["greedy agreement", ""]


def test_the_target_of_all_inputs_is_drawn_row_by_row(cells: list[GateCell]) -> None:
    assert most_compared_target(cells) == 0.5 and most_compared_target([]) is None
    figure = draw_inputs(cells, 0.5)
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][:2] == [
        "gates: hidden state",
        "gates: fixed input",
    ]
    assert len(figure.axes[0].get_yticks()) == 9


def test_differences_stand_before_the_margin(cells: list[GateCell]) -> None:
    table = differences_table(cells)
    figure = draw_differences(table, "rouge_l")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"{row['mode']}, {row['target']}" for row in table]
    assert "within the margin, ±1" in _labels(figure)
    means = axes.containers[0].lines[0].get_xdata()
    assert list(means) == pytest.approx([row["difference"].mean for row in table])
    without = draw_differences(differences_table(cells, "nll"), "nll")
    assert not any("margin" in label for label in _labels(without))


@pytest.mark.parametrize("ending", [pytest.param(".png", marks=pytest.mark.matrix), ".svg"])
def test_the_curves_are_always_the_same_file(rows: pa.Table, tmp_path: Path, ending: str) -> None:
    one, two = (save_figure(draw_gates(gather_gates(rows)), tmp_path / f"{name}{ending}") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_one_seed_and_one_sequence_can_be_drawn(tmp_path: Path) -> None:
    few = gather_gates(gate_rows(n_sequences=1, seeds=(0,), targets=(0.5,)))
    assert save_figure(draw_gates(few), tmp_path / "few.png").exists()
    draw_differences(differences_table(few), "rouge_l")


def test_rows_without_any_metric_are_refused(rows: pa.Table) -> None:
    bare = rows
    for name in ("rouge_l", "nll", "agreement"):
        bare = bare.set_column(bare.column_names.index(name), name, pa.nulls(len(rows), pa.float64()))
    with pytest.raises(InputError, match="hold none of rouge_l, nll, agreement"):
        draw_gates(gather_gates(bare))
