"""`certify` from the command line, on a tiny random model: one command from rows to a certificate and its page."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_one_command_gives_a_plan_a_sentence_and_a_page(paths, run, command_line):
    small = ("--max-new-tokens", "3", "--depth", "uls:5,uls:4", "--delta", "0.2")
    status, out, err = run("certify", *small, "--epsilon", "0.5,0.9")
    assert status == 0, err
    kept = json.loads((paths / "out" / "certificates.json").read_text())["certificates"]
    plans = json.loads((paths / "out" / "plan.json").read_text())["plans"]
    assert [one["plan_digest"] for one in kept] == [one["digest"] for one in plans]
    assert all(one["digest"] in out for one in plans) and "18 to certify, 0 unused" in out
    assert "uls:4" in out and "calibration rows" in out
    page = (paths / "out" / "report.html").read_text()
    assert "Depths in the order of the tests" in page and plans[0]["digest"] in page
    assert (paths / "out" / "figures" / "losses.png").exists() and (paths / "out" / "tables" / "losses.csv").exists()
    assert "--prompt-depth" not in out
    told = run("certify", *small, "--epsilon", "0.9", "--prompt-depth", "route", "--out", paths / "on-the-route")
    assert told[0] == 0 and "--prompt-depth route" in told[1].rpartition("Next:")[2]
    again = command_line("report", paths / "out")
    assert again[0] == 0 and (paths / "out" / "report.html").read_text() == page
    status, _, err = run("certify", *small, "--epsilon", "0.6")
    assert status == 2 and "holds a certification plan with another plans" in err


def test_what_is_refused(paths, run):
    for given, complaint in (
        ((), "Say which depths to certify"),
        (("--depth", "uls:4"), "18 rows cannot certify a loss of at most 0.02, which takes at least 172"),
        (("--depth", "uls:4", "--metric", "fame"), "Unknown metric 'fame'"),
        (("--depth", "uls:4", "--epsilon", "two"), "--epsilon takes fractions such as 0.9,0.75 or 90%, not 'two'"),
        (("--depth", "full", "--epsilon", "0.9"), "The full model alone loses nothing"),
        (("--depth", "uls:4", "--epsilon", "90%", "--split", "test"), "test split is for evaluation alone"),
    ):
        status, _, err = run("certify", *given)
        assert status == 2 and complaint in err and "Traceback" not in err, given
