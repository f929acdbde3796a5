"""The section: what is there is told, what is not is asked for."""

from __future__ import annotations

from dataclasses import replace

from depthdial.report.controller.scores import ControllerScores
from depthdial.report.controller.section import controller_section
from depthdial.report.controller.tables import headline
from tests.report.controller.demo import demo_score, demo_scores, equal_score


def test_the_headline_pictures_tables_and_certificates_are_there() -> None:
    section = controller_section(demo_scores())
    assert list(section.paragraphs) == headline(demo_score())
    assert [picture.name for picture in section.pictures] == [
        "controller-agreement",
        "controller-shares",
        "controller-calibration",
        "controller-rouge_l-by-ms",
    ]
    captions = " | ".join(table.caption for table in section.tables)
    for part in ("Mean over 3 budgets: agreement", "At each budget: rouge_l by ms, costs in ms", "Guarantees", "Each route"):
        assert part in captions
    assert [["predict_ms", "0.25"]] in [[[cell for cell, _ in row] for row in table.rows] for table in section.tables]
    assert list(section.notes[1:]) == [certificate.statement for certificate in demo_scores().certificates]
    assert all(len(picture.alt) > 40 for picture in section.pictures)


def test_the_note_says_where_the_mixture_was_decided() -> None:
    assert "the best in hindsight on these sequences" in controller_section(demo_scores()).notes[0]
    other = controller_section(ControllerScores({"agreement": equal_score()}))
    assert [picture.name for picture in other.pictures] == ["controller-agreement", "controller-shares"]
    assert len(other.tables) == 2  # one budget needs no mean; nothing certified, nothing known of the controller


def test_names_that_no_file_takes_are_changed() -> None:
    odd = replace(demo_scores(), scores={"rouge l/2": demo_score()})
    assert controller_section(odd).pictures[0].name == "controller-rouge-l-2"
