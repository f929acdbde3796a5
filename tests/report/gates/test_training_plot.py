from __future__ import annotations

import math

import pytest

from depthdial.report.gates.training_plot import draw_gate_training, plot_gate_training


def record(target: float | None = 0.5, n_steps: int = 4) -> dict:
    history = [
        {"step": i + 1, "loss": 2.0, "loss/task": 3.0 - i, "fraction": 0.6, "fraction/expected": 0.5, "price": i}
        for i in range(n_steps)
    ]
    settings = {"distill": False, "target": target, "input": "hidden"}
    rates = {"layer_rates": [1.0, 0.25, 1.0]}
    return {"history": history, "settings": settings, "steps": n_steps, "response_tokens": 1234, **rates}


def test_every_panel_shows_its_column():
    loss, fraction, price, rates = draw_gate_training(record()).axes
    assert list(loss.lines[0].get_ydata()) == [3, 2, 1, 0] and list(price.lines[0].get_ydata()) == [0, 1, 2, 3]
    assert [line.get_label() for line in fraction.lines] == ["drawn", "expected", "target"]
    assert [bar.get_height() for bar in rates.patches] == [1, 0.25, 1]
    assert "cross-entropy" in loss.get_ylabel()
    assert len(draw_gate_training(record(target=None)).axes[1].lines) == 2


@pytest.mark.parametrize("n_steps", [0, 1])
def test_short_runs_and_steps_without_routed_tokens_still_draw(tmp_path, n_steps):
    short = record(n_steps=n_steps)
    for entry in short["history"]:
        del entry["fraction"]
    assert plot_gate_training(short, tmp_path / "gates.png").stat().st_size > 1000
    assert all(math.isnan(value) for value in draw_gate_training(short).axes[1].lines[0].get_ydata())
