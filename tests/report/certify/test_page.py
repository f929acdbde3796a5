"""The table and the file of certificates; the page itself is made in tests/cli/test_certify.py."""

from __future__ import annotations

import numpy as np
import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.report.certify.page import loss_table, read_certificates
from depthdial.report.certify.plot import draw_certificates
from depthdial.rows.store import CERTIFICATES_FILE

LOSSES = np.linspace(-0.1, 0.1, 400)[:, None] * np.array([0, 1, 2]) + np.array([0, 0.01, 0.3])


def certificates():
    plans = [dd.CertificationPlan(("full", "uls:5", "uls:4"), epsilon, metric="rouge_l") for epsilon in (0.03, 0.05, 0.5)]
    about = {"quality": [0.4, 0.39, 0.1]}
    return [plan.certify(LOSSES, np.tile([6, 5, 4], (400, 1)), provenance=about) for plan in plans]


def test_the_table_says_which_loss_each_depth_is_certified_at():
    found = certificates()
    first, five, four = loss_table(found)
    assert (first["depth"], five["depth"], four["depth"]) == ("full", "uls:5", "uls:4")
    assert (first["certified_at"], five["certified_at"], four["certified_at"]) == (None, "0.03, 0.05, 0.5", "0.5")
    assert (five["lost"], four["lost"]) == pytest.approx((0.01, 0.3)) and five["bound"] == found[0].upper_risks[1]
    axes = draw_certificates(found).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["uls:5", "uls:4"]
    assert [text.get_text().strip() for text in axes.texts] == ["0.03", "0.05", "0.5"]


def test_a_file_without_certificates_is_refused(tmp_path):
    for broken in ({}, {"certificates": []}, [], {"certificates": [{"plan": {}}]}):
        write_json(tmp_path / CERTIFICATES_FILE, broken)
        with pytest.raises(InputError):
            read_certificates(tmp_path)
    write_json(tmp_path / CERTIFICATES_FILE, {"certificates": [one.to_dict() for one in certificates()]})
    assert read_certificates(tmp_path) == tuple(certificates())
