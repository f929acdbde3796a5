"""Certify the prices of a controller on the rows that `depthdial certify` measured, so that no answer is made twice.

    python experiments/certified/controllers.py plan FIT_DIR OUT_DIR          (before those rows are run)
    python experiments/certified/controllers.py certify FIT_DIR OUT_DIR --static CERTIFIED_DIR --data FILE [options]
    python experiments/certified/controllers.py test FIT_DIR OUT_DIR --data FILE --limit N [options]

`plan` writes the plans with their digests. `certify` runs the calibration prompts once through the full model for the
features, takes every route's ROUGE-L and length from CERTIFIED_DIR, and lets the controller's folder remember the rows.
`test` answers test rows on every route, and holds the controller against the best static mixture of the routes, at the
layer-steps that it spent itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.control.certify import certification_plan, certify_rows
from depthdial.control.controller import SequenceController
from depthdial.control.fit import require_unseen
from depthdial.control.rows import MeasuredRows
from depthdial.data.leakage import prompt_hashes, require_apart
from depthdial.data.tasks import Task, task
from depthdial.errors import InputError
from depthdial.files import claim, write_json
from depthdial.guarantee.plan import CertificationPlan
from depthdial.hf.load import load
from depthdial.measure.features import FeatureRows
from depthdial.measure.plan import ModelIdentity, make_plan
from depthdial.measure.sweep import sweep
from depthdial.oracles.baselines import mixture_curve
from depthdial.oracles.prices import choose_routes
from depthdial.provenance import environment
from depthdial.rows.store import load_rows
from depthdial.stats.bootstrap import percentiles, resamples

DELTA, METHOD = 0.05, "star_betting"
BUDGETS = (0.6, 0.7, 0.8, 0.9)


def write_plans(controller: SequenceController, epsilons: Sequence[float], out: Path) -> list[CertificationPlan]:
    """The plans, written down where they are not yet, and the same where they are."""
    plans = [certification_plan(controller, epsilon, delta=DELTA, method=METHOD) for epsilon in epsilons]
    told = {"plans": [{"digest": plan.digest, **plan.to_dict()} for plan in plans]}
    claim(out / "plan.json", told, "controller's certification plan")
    return plans


def unseen(controller: SequenceController, given: argparse.Namespace) -> tuple[Task, Any, Any, ModelIdentity]:
    """Rows that the controller was not made on, and the model, its tokenizer and its identity."""
    rows = task(given.data, limit=given.limit, max_prompt_tokens=controller.card.max_prompt_tokens)
    model, tokenizer = load(given.model, adapter=given.adapter)
    controller.check(model)
    require_unseen(controller, rows, model)
    return rows, model, tokenizer, ModelIdentity.of(model, given.model)


def with_features(
    controller: SequenceController,
    rows: Task,
    model: Any,
    tokenizer: Any,
    identity: ModelIdentity,
    table: pa.Table,
    given: argparse.Namespace,
) -> MeasuredRows:
    """Measured rows with what the controller sees of their prompts."""
    card = controller.card
    plan = make_plan(model, tokenizer, rows, card.routes, prompt_depth=card.prompt_depth, identity=identity, settings={})
    found = FeatureRows(plan, card.features, given.batch_size, given.out / "features").collect(progress=True)
    return MeasuredRows(found.sequence_ids, prompt_hashes(rows), found.matrix, table)


def judge(controller: SequenceController, given: argparse.Namespace) -> dict[str, Any]:
    """Measure test rows, keep what the controller predicts of them, and its gain over the static mixture."""
    card = controller.card
    rows, model, tokenizer, identity = unseen(controller, given)
    require_apart(rows, controller.certified_on.prompts(), "to certify the controller")
    asked: dict[str, Any] = {
        "metrics": (card.metric,),
        "max_new_tokens": card.response_tokens,
        "batch_size": given.batch_size,
    }
    asked |= {"full_untouched": True, "identity": identity, "out": given.out, "progress": True}
    table = sweep(model, tokenizer, task=rows, routes=card.routes, **asked)
    measured = with_features(controller, rows, model, tokenizer, identity, table, given)
    predicted = controller.predict(measured.features)
    values, steps = measured.values(card.metric, card.routes), measured.steps(card.routes)
    names, n = [route.name for route in card.routes], len(values)
    columns = {"sequence_id": np.repeat(measured.sequence_ids, len(names)), "route": np.tile(names, n)}
    columns |= {
        "predicted": predicted.quality.ravel(),
        "predicted_steps": predicted.steps.ravel(),
        "measured": values.ravel(),
    }
    pq.write_table(pa.table(columns), given.out / "predictions.parquet")
    spent = np.array([len(route) for route in card.routes]) * steps
    told = gains(controller, controller.expected_costs(predicted), predicted.quality, values, spent)
    write_json(given.out / "judged.json", told | environment())
    return told


def gains(
    controller: SequenceController, expected: np.ndarray, quality: np.ndarray, values: np.ndarray, spent: np.ndarray
) -> dict[str, Any]:
    """What the controller is worth over the best static mixture at its own cost, a mean over budgets, and at each.

    Args:
        expected, quality: (n, n_routes) predicted costs and quality, which it chooses by.
        values, spent: (n, n_routes) quality and layer-steps as measured.
    """
    at, full = np.arange(len(values)), controller.card.full
    chosen = [choose_routes(quality, expected, controller.at(budget).price) for budget in BUDGETS]
    picked = np.stack([np.stack([values[at, one], spent[at, one]], axis=1) for one in chosen])  # (budgets, n, 2)

    def gain(counts: np.ndarray) -> np.ndarray:
        total, base = counts.sum(), counts @ spent[:, full]
        costs, means = counts @ spent / base, counts @ values / total
        own = np.tensordot(picked, counts, axes=(1, 0)) / np.array([total, base])
        return np.array([value - mixture_curve(costs, means, np.array([max(cost, costs.min())]))[0] for value, cost in own])

    point = gain(np.ones(len(values)))
    counts = np.concatenate(list(resamples(np.random.default_rng(0), 2000, len(values))))
    draws = np.stack([gain(one) for one in counts])
    low, high = percentiles(draws.mean(axis=1), 0.95)
    costs = [float(part[:, 1].sum() / spent[:, full].sum()) for part in picked]
    return {
        "budgets": list(BUDGETS),
        "costs": costs,
        "gains": point.tolist(),
        "mean": float(point.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("plan", "certify", "test"))
    parser.add_argument("fit", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--static", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epsilons", default="0.01,0.02,0.05")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", default="elastic")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    controller = SequenceController.from_pretrained(given.fit)
    if given.step == "test":
        print(judge(controller, given))
        return
    plans = write_plans(controller, [float(one) for one in given.epsilons.split(",")], given.out)
    if given.step == "plan":
        print(*(plan.digest for plan in plans))
        return
    rows, model, tokenizer, identity = unseen(controller, given)
    controller.certified_on.require_untried(plans, prompt_hashes(rows))
    table = load_rows(given.static)
    if set(table["weights_hash"].to_pylist()) != {identity.weights_hash}:
        raise InputError(
            f"The rows in {given.static} are of other weights than the model that is loaded: measure them again."
        )
    measured = with_features(controller, rows, model, tokenizer, identity, table, given)
    controller.certified_on.note(plans, measured.prompts)
    about = {"task": rows.name, "split": rows.split, "source": rows.source_fingerprint, **environment()}
    certificates = [certify_rows(controller, each, measured, about) for each in plans]
    write_json(given.out / "certificates.json", {"certificates": [one.to_dict() for one in certificates]})
    for one in certificates:
        print(one.statement)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
