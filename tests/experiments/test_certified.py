"""The committed certificates: tables and page are of their rows, plans of their digests, and the rows hold no text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from depthdial.guarantee.p_values import p_values, upper_bounds
from depthdial.guarantee.plan import Certificate, CertificationPlan
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "certified"
DATA = sorted(path.parent.name for path in FOLDER.glob("*/static-certificates.json"))


@pytest.fixture(scope="module")
def results():
    with loaded(FOLDER / "results.py", "certified_results") as module:
        yield module


@pytest.fixture(scope="module")
def found():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_tables_and_page_are_those_of_the_results(results, found) -> None:
    assert sorted(found) == DATA
    planned = json.loads((FOLDER / "planned.json").read_text(encoding="utf-8"))
    told = (FOLDER / "results.md").read_text(encoding="utf-8")
    assert told == results.markdown(found) + "\n" + "\n".join([*results.planned_lines(planned), ""])
    page = (ROOT / "docs" / "certified.md").read_text(encoding="utf-8")
    tables = [results.promises(found, "static"), results.depth_lines(found), results.planned_lines(planned)]
    tables += [results.promises(found, "prices")] if any("prices" in one for one in found.values()) else []
    for line in (line for table in tables for line in table):
        assert line in page
    for one in found.values():
        gain = one.get("gain")
        assert gain is None or f"{gain['mean']:.4f} [{gain['low']:.4f}, {gain['high']:.4f}]" in re.sub(r"\s+", " ", page)


def test_what_the_pages_say_of_the_bets_is_so(results) -> None:
    depths = ["greedy-kl:24", "greedy-kl:20", "greedy-kl:15"]
    losses, _ = results.losses_of(FOLDER / "alpaca" / "calibration.parquet", depths)
    rooms = {name: upper_bounds(losses.T, 0.05, method=name) - losses.mean(axis=0) for name in ("betting", "star_betting")}
    nearer = 1 - rooms["star_betting"] / rooms["betting"]
    told = (
        f"the {len(losses):,} rows of Alpaca in [certified savings](certified.md) its bounds lie {100 * nearer.min():.0f} to"
    )
    assert f"{told} {nearer.max():.0%} nearer" in (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    draws = np.random.default_rng(0).choice([1.0, -1.0, 0.0], p=[0.06, 0.05, 0.89], size=(1000, 1000))
    share = (p_values(draws, 0.02, method="star_betting") <= 0.05).mean()
    words = re.sub(r"\s+", " ", (ROOT / "docs" / "certified.md").read_text(encoding="utf-8"))
    assert (
        f"breaks 6 answers of 100 and mends 5, a thousand rows certify 2 points in {share:.0%} of simulated draws" in words
    )


@pytest.mark.parametrize("name", DATA)
def test_certificates_are_of_the_plans_that_were_written_before_and_of_the_rows(name: str, results, found) -> None:
    for kind in ("static", "prices"):
        if not (FOLDER / name / f"{kind}-certificates.json").exists():
            continue
        plans = json.loads((FOLDER / name / f"{kind}-plan.json").read_text())["plans"]
        kept = json.loads((FOLDER / name / f"{kind}-certificates.json").read_text())["certificates"]
        for plan, one in zip(plans, map(Certificate.from_dict, kept), strict=True):
            told = plan.pop("digest")
            assert told == one.plan_digest == CertificationPlan.from_dict(plan).digest
    depths = [one["depth"] for one in found[name]["depths"]]
    losses, costs = results.losses_of(FOLDER / name / "calibration.parquet", depths)
    assert len(losses) == found[name]["n"]
    for i, one in enumerate(found[name]["depths"]):
        assert (losses[:, i].mean(), costs[i]) == pytest.approx((one["loss"], one["layer_steps"]))


@pytest.mark.parametrize("name", DATA)
def test_parts_share_no_row_and_hold_no_text(name: str) -> None:
    answers: dict[str, set[str]] = {}
    for part in ("fit", "calibration", "test"):
        path = FOLDER / name / f"{part}.parquet"
        if path.exists():
            table = pq.read_table(path)
            assert not {"answer", "prompt", "reference"} & set(table.column_names)
            answers[part] = set(table["sequence_id"].to_pylist())
    calibration = json.loads((FOLDER / name / "static-certificates.json").read_text())["certificates"][0]
    tried = set(calibration["provenance"]["prompts"])  # by their hashes
    fitted = json.loads((FOLDER / name / "controller.json").read_text())["fitted_on"]["prompts"]
    assert len(tried) == len(answers["calibration"]) and len(set(fitted)) == len(answers["fit"])
    assert not tried & set(fitted)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_everything_is_made_again_of_the_rows(name: str, results, found) -> None:
    def rounded(one: object) -> object:
        return json.loads(json.dumps(one), parse_float=lambda text: round(float(text), 9))

    assert rounded(results.on_data(name)) == rounded(found[name])
