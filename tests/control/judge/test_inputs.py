"""What a score is made from is refused, in one sentence, where it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from depthdial.control.judge.headroom import score_controller
from depthdial.control.judge.inputs import checked_alike, checked_predictions
from depthdial.errors import InputError

ROUTES, LAYERS, BUDGETS = ("a:15", "a:20", "a:25", "full"), np.array([15.0, 20.0, 25.0, 30.0]), [18.0, 21.0, 24.0]


def test_the_controller_comes_first_and_rivals_may_have_other_seeds() -> None:
    predicted = {"rival": np.zeros((1, 5, 2)), "controller": np.zeros((3, 5, 2))}
    guesses = checked_predictions(predicted, 5, 2)
    assert list(guesses) == ["controller", "rival"] and len(guesses["controller"]) == 3
    checked = checked_alike(
        {"controller": np.zeros((3, 2)), "rival": [[0, 1]]}, "prices", {"rival": (1, 2), "controller": (3, 2)}
    )
    assert checked["rival"].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"predicted": {"rival": np.zeros((1, 20, 4))}}, "give those of `controller`"),
        ({"predicted": {"controller": np.zeros((1, 20, 4)), "random": np.zeros((1, 20, 4))}}, "other names than random"),
        ({"predicted": {"controller": np.zeros((20, 4))}}, r"shape \(20, 4\); give \(any, 20, 4\)"),
        ({"predicted": {"controller": np.full((1, 20, 4), np.nan)}}, "NaN or infinite"),
        ({"prices": {"controller": np.zeros((1, 2))}}, r"shape \(1, 2\); give \(1, 3\)"),
        ({"prices": {"controller": -np.ones((1, 3))}}, "Invalid price"),
        ({"prices": {"rival": np.zeros((1, 3))}}, "the same names"),
        ({"routes": ROUTES[:2]}, "2 names of routes for 4"),
        ({"overhead": -0.1}, "Invalid overhead -0.1: use a number of at least 0"),
        ({"overhead": float("nan")}, "Invalid overhead nan"),
        ({"values": [[0.1], [0.2, 0.3]]}, "not an array of real numbers"),
        ({"known": [[[1.0]], [[1.0, 2.0]]]}, "known are not an array of real numbers"),
        ({"known": np.zeros((20, 4))}, "give"),
        ({"n_bootstrap": 10}, "whole number of at least 100"),
        ({"n_folds": 21}, "at least 2 and at most 20"),
        ({"confidence": 1.0}, "above 0 and below 1"),
        ({"values": np.zeros((1, 4))}, "at least two test sequences"),
        ({"budgets": []}, "budgets have shape"),
    ],
)
def test_wrong_input_is_told(change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {
        "routes": ROUTES,
        "values": np.zeros((20, 4)),
        "costs": LAYERS,
        "predicted": {"controller": np.zeros((1, 20, 4))},
        "prices": {"controller": np.zeros((1, 3))},
        "budgets": BUDGETS,
    }
    with pytest.raises(InputError, match=told):
        score_controller(**given | change)
