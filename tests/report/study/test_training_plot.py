from __future__ import annotations

import pytest

from depthdial.report.kit.style import save_figure
from depthdial.report.study.training_plot import draw_training


def record(distill: bool = True, n_routes: int = 3) -> dict:
    names = [f"uls:{n}" for n in range(2, 2 + n_routes)]
    history = [
        {"step": 10 * (i + 1), "loss": 1.0} | {f"loss/{name}": (j + 1) / (i + 1) for j, name in enumerate(names) if i or j}
        for i in range(5)
    ]
    return {
        "history": history,
        "settings": {"distill": distill},
        "steps": 50,
        "response_tokens": 12345,
        "response_tokens_by_route": dict.fromkeys(names, 4115),
    }


def test_each_route_has_a_line_of_its_own_losses():
    axes = draw_training(record()).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"uls:2", "uls:3", "uls:4"}
    assert list(lines["uls:2"].get_xdata()) == [20, 30, 40, 50]  # it did not run before step 10
    assert list(lines["uls:4"].get_ydata()) == pytest.approx([3, 1.5, 1, 0.75, 0.6])
    assert axes.get_yscale() == "log" and "KL" in axes.get_ylabel()
    assert "cross-entropy" in draw_training(record(distill=False)).axes[0].get_ylabel()


def test_many_routes_are_told_apart():
    lines = draw_training(record(n_routes=12)).axes[0].lines
    assert len({(line.get_marker(), str(line.get_color())) for line in lines}) == 12


def test_a_run_too_short_for_an_entry_still_draws(tmp_path):
    empty = record() | {"history": []}
    assert save_figure(draw_training(empty), tmp_path / "training.png").stat().st_size > 1000
