"""How gates were trained: the loss, and the fraction of layers that ran, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.report.kit.style import BLUE, GRAY, ORANGE, SKY, VERMILION, figure_style, headed, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_gate_training(record: Mapping[str, Any], path: Path) -> Path:
    """Draw the record of `train_gates` and save it (.png, .svg, .pdf)."""
    return save_figure(draw_gate_training(record), path)


def draw_gate_training(record: Mapping[str, Any]) -> Figure:
    """Loss, fraction of layers run, and price against optimizer steps; how often each layer ran in the end."""
    history, settings = record["history"], record["settings"]
    is_kl = settings.get("run", settings)["distill"]  # older records have the settings of the run among those of gates
    steps = [entry["step"] for entry in history]

    def column(name: str) -> list[float]:
        return [entry.get(name, float("nan")) for entry in history]

    with figure_style():
        figure = new_figure(4.6)
        loss, fraction, price, rates = figure.subplots(2, 2).flat
        loss.plot(steps, column("loss/task"), color=BLUE)
        loss.set_ylabel("KL to the full model (nats)" if is_kl else "cross-entropy (nats)")
        fraction.plot(steps, column("fraction"), color=SKY, linestyle=":", label="drawn")
        fraction.plot(steps, column("fraction/expected"), color=BLUE, label="expected")
        if settings["target"] is not None:
            fraction.axhline(settings["target"], color=VERMILION, linestyle="--", linewidth=1, label="target")
        fraction.set_ylabel("fraction of layers run")
        fraction.legend()
        price.plot(steps, column("price"), color=ORANGE)
        price.set_ylabel("price of all layers (nats)")
        for axes in (loss, fraction, price):
            axes.set_xlabel("optimizer step")
        layers = record["layer_rates"]
        rates.bar(range(len(layers)), layers, color=GRAY)
        rates.set_xlabel("layer")
        rates.set_ylabel("share of tokens that ran it")
        rates.set_ylim(0, 1)
        headed(
            figure,
            f"Training gates on the {settings['input']} input: {record['steps']:,} steps, "
            f"{record['response_tokens']:,} response tokens",
        )
    return figure
