"""Score a fitted controller by layer-steps on test rows whose agreement was measured before.

    python experiments/controller/rescore.py MEASURED OUT FIT

`run.sh` measures everything anew. This takes agreement and ROUGE-L of every route from the rows that are committed here,
and from MEASURED what they lacked: the prompts' features (`MEASURED/PART/features.npz`) and the lengths of the full model's
answers (`MEASURED/PART/full`, a sweep of the full route), for the parts test, cal and dolly. FIT is a folder of
`controller fit`. Times are those of the evaluation before. Without the shallow route's own NLL there is no cascade.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import depthdial as dd
from depthdial.control.baselines import learn_again
from depthdial.control.certify import certification_plan, certify_rows
from depthdial.control.fit import MEASURED
from depthdial.control.overhead import ChoosingTime
from depthdial.control.rows import MeasuredRows, read_measured
from depthdial.oracles.score_table import read_samples
from depthdial.provenance import environment
from depthdial.report.controller.page import write_controller_report
from depthdial.report.controller.scores import ControllerScores, keep_scores
from depthdial.studies.controller import EvaluationSettings, _about, _Evaluation, _keep_predictions

HERE = Path(__file__).parent


def main(measured: Path, out: Path, fit: Path) -> None:
    controller = dd.SequenceController.from_pretrained(fit)
    fitted = read_measured(fit / MEASURED, controller.card.features, controller.card.fitted_on["prompts"])
    held = rows_of(measured / "cal", HERE / "alpaca/rows/calibration-scores.parquet")
    for name, part, rivals in (("alpaca", "test", ("mlp", "trees")), ("dolly", "dolly", ())):
        settings = EvaluationSettings(rivals=rivals, samples=4 if name == "alpaca" else 0, rouge=name == "alpaca")
        rows = rows_of(measured / part, HERE / name / "rows/test-scores.parquet")
        learned = learn_again(controller, fitted, rivals=rivals, seeds=settings.seeds, seed=settings.seed)
        known = known_of(HERE / name / "rows/test-known.parquet", rows, controller) if name == "alpaca" else None
        before = json.loads((HERE / name / "controller_scores.json").read_text())["overhead"]
        times = ChoosingTime(**{key: before[key] for key in ChoosingTime.__dataclass_fields__})
        route_ms = np.array([before["route_ms"][route.name] for route in controller.routes])
        rouge = None
        if name == "alpaca":
            answers = pq.read_table(HERE / name / "rows/test-answers.parquet")
            rouge = MeasuredRows(rows.sequence_ids, rows.prompts, np.empty((len(rows.sequence_ids), 0)), answers)
        job = _Evaluation(controller, learned, rows, settings, known)
        certificates = ()
        if name == "alpaca":
            plans = [certification_plan(controller, epsilon, delta=settings.delta) for epsilon in settings.epsilons]
            about = {"task": "alpaca", "split": "validation"}
            certificates = tuple(certify_rows(controller, plan, held, about) for plan in plans)
        task: Any = type("Task", (), {"name": name, "split": "test"})
        about = _about(controller, task, settings, rows)
        scores = ControllerScores(job.scores(times, route_ms, None, rouge), certificates, {**before, **environment()}, about)
        keep_scores(out / name, scores)
        _keep_predictions(out / name / "predictions.parquet", controller, rows)
        keep_rows(out / name / "rows" / "test-scores.parquet", rows.table)
        print(write_controller_report(out / name))
    keep_rows(out / "alpaca/rows/calibration-scores.parquet", held.table)


def rows_of(measured: Path, scores: Path) -> MeasuredRows:
    """Committed rows with the lengths of the full model's answers filled in, and the prompts' features."""
    found = np.load(measured / "features.npz", allow_pickle=False)
    ids = tuple(found["ids"].tolist())
    lengths = pq.read_table(measured / "full/rows.parquet", columns=["sequence_id", "new_tokens"]).to_pydict()
    tokens = dict(zip(lengths["sequence_id"], lengths["new_tokens"], strict=True))
    table = pq.read_table(scores)
    pairs = zip(table["sequence_id"].to_pylist(), table["route"].to_pylist(), strict=True)
    column = pa.array([tokens[one] if route == "full" else None for one, route in pairs], pa.int64())
    table = table.set_column(table.column_names.index("new_tokens"), "new_tokens", column)
    return MeasuredRows(ids, ("",) * len(ids), found["x"], table)


def known_of(path: Path, rows: MeasuredRows, controller: Any) -> np.ndarray:
    found = read_samples(
        pq.read_table(path), metric="agreement", cost="layers", sequence="sequence_id", route="route", sample="sample"
    )
    place = {one: i for i, one in enumerate(found.sequence_ids)}
    columns = [found.routes.index(route.name) for route in controller.routes]
    return found.values[[place[one] for one in rows.sequence_ids]][:, columns]


def keep_rows(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else HERE / "fit")
