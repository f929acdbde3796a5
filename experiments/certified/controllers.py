"""Certify the prices of a controller on the rows that `depthdial certify` measured, so that no answer is made twice.

    python experiments/certified/controllers.py plan FIT_DIR OUT_DIR          (before those rows are run)
    python experiments/certified/controllers.py certify FIT_DIR OUT_DIR --static CERTIFIED_DIR --data FILE [options]

The first writes the plans with their digests; the second runs the calibration prompts once through the full model for the
features, and takes every route's ROUGE-L and length from CERTIFIED_DIR. The controller's folder remembers the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from depthdial.control.certify import certification_plan, certify_rows
from depthdial.control.controller import SequenceController
from depthdial.control.fit import require_unseen
from depthdial.control.rows import MeasuredRows
from depthdial.data.leakage import prompt_hashes
from depthdial.data.tasks import task
from depthdial.errors import InputError
from depthdial.files import claim, write_json
from depthdial.guarantee.plan import CertificationPlan
from depthdial.hf.load import load
from depthdial.measure.features import FeatureRows
from depthdial.measure.plan import ModelIdentity, make_plan
from depthdial.provenance import environment
from depthdial.rows.store import load_rows

DELTA, METHOD = 0.05, "star_betting"


def write_plans(controller: SequenceController, epsilons: Sequence[float], out: Path) -> list[CertificationPlan]:
    """The plans, written down where they are not yet, and the same where they are."""
    plans = [certification_plan(controller, epsilon, delta=DELTA, method=METHOD) for epsilon in epsilons]
    told = {"plans": [{"digest": plan.digest, **plan.to_dict()} for plan in plans]}
    claim(out / "plan.json", told, "controller's certification plan")
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("plan", "certify"))
    parser.add_argument("fit", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--static", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epsilons", default="0.01,0.02,0.05")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", default="elastic")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    controller = SequenceController.from_pretrained(given.fit)
    plans = write_plans(controller, [float(one) for one in given.epsilons.split(",")], given.out)
    if given.step == "plan":
        print(*(plan.digest for plan in plans))
        return
    card = controller.card
    rows = task(given.data, max_prompt_tokens=card.max_prompt_tokens)
    model, tokenizer = load(given.model, adapter=given.adapter)
    controller.check(model)
    require_unseen(controller, rows, model)
    controller.certified_on.require_untried(plans, prompt_hashes(rows))
    table = load_rows(given.static)
    if set(table["weights_hash"].to_pylist()) != {card.weights_hash}:
        raise InputError(f"The rows in {given.static} are of other weights than the controller: measure them again.")
    options = {"prompt_depth": card.prompt_depth, "identity": ModelIdentity.of(model, given.model), "settings": {}}
    plan = make_plan(model, tokenizer, rows, card.routes, **options)
    found = FeatureRows(plan, card.features, given.batch_size, given.out / "features").collect(progress=True)
    measured = MeasuredRows(found.sequence_ids, prompt_hashes(rows), found.matrix, table)
    controller.certified_on.note(plans, measured.prompts)
    about = {"task": rows.name, "split": rows.split, "source": rows.source_fingerprint, **environment()}
    certificates = [certify_rows(controller, each, measured, about) for each in plans]
    write_json(given.out / "certificates.json", {"certificates": [one.to_dict() for one in certificates]})
    for one in certificates:
        print(one.statement)


if __name__ == "__main__":
    main()
