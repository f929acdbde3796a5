"""Figures on their own, for notebooks and scripts: the ones that pages show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdial.control.judge.headroom import ControllerScore
from depthdial.errors import InputError
from depthdial.latency.model import LatencyModel
from depthdial.oracles.oracle import OracleCurve
from depthdial.oracles.predictable import PredictableCurve
from depthdial.oracles.speculation import SpeculationForecast
from depthdial.report.bench.forecast import draw_forecast
from depthdial.report.bench.plot import draw_latency
from depthdial.report.controller.plot import draw_controller
from depthdial.report.kit.style import save_figure
from depthdial.report.study.oracle_plot import draw_oracle
from depthdial.report.study.predictable_plot import draw_predictable
from depthdial.report.study.similarity_plot import draw_similarity
from depthdial.report.study.summary import gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAW = {
    OracleCurve: draw_oracle,
    PredictableCurve: draw_predictable,
    ControllerScore: draw_controller,
    LatencyModel: draw_latency,
    SpeculationForecast: draw_forecast,
}


def plot(result: Any, path: Path | str | None = None) -> Figure:
    """The figure of a result: of `oracle`, `predictable_oracle`, `bench`, `speculation_forecast`, a controller's score, or
    the rows of `similarity`.

        >>> curve = dd.oracle(rows, metric="agreement")
        >>> len(dd.plot(curve, folder / "oracle.png").axes)
        2

    Args:
        path: also save it there, as .png, .svg or .pdf.

    Returns:
        A matplotlib Figure, which notebooks show.

    Raises:
        InputError: if there is no figure of such a result, or the path has another ending or cannot be written.
    """
    if type(result) in _DRAW:
        figure = _DRAW[type(result)](result)
    elif "cosine_final" in (getattr(result, "column_names", None) or getattr(result, "columns", ())):
        figure = draw_similarity(gather(result))
    else:
        raise InputError(f"Cannot plot {type(result).__name__}: give an oracle's curve or the rows of dd.similarity.")
    if path is not None:
        save_figure(figure, Path(path))
    return figure
