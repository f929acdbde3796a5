"""The committed certificates: tables and page are of their rows, plans of their digests, and the rows hold no text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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
