"""The verdict, against rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from depthdial.errors import InputError
from depthdial.report.study.verdict import decide, percent

Scores = dict[str, list[float]]


def _rows(quality: Scores, *, metric: str = "rouge_l", n_layers: int = 10, **columns: Any) -> dict[str, list[Any]]:
    """A row for each route and score; further columns as functions of (route, number of the sequence)."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("sequence_id", "route", "route_layers", "n_layers", metric, *columns)
    }
    for name, scores in quality.items():
        n_run = n_layers if name == "full" else int(name.rpartition(":")[2])
        for i, score in enumerate(scores):
            layers = "full" if n_run == n_layers else f"0-{n_run - 1}"
            values = (f"s{i}", name, layers, n_layers, score, *(make(name, i) for make in columns.values()))
            for column, value in zip(rows, values, strict=True):
                rows[column].append(value)
    return rows


def _seconds(**by_route: list[float]) -> dict[str, Any]:
    return {
        "step_sec": lambda name, i: by_route[name.replace(":", "_")][i],
        "batch_size": lambda name, i: 1,
        "model": lambda name, i: "org/my model",
    }


FULL = [0.4, 0.5, 0.6, 0.5]


def test_the_fewest_layers_whose_whole_interval_keeps_enough_are_the_answer() -> None:
    quality = {"full": FULL, "ee:9": FULL, "ee:8": [0.99 * q for q in FULL], "ee:6": [0.5 * q for q in FULL]}
    times = _seconds(full=[1.0] * 4, ee_9=[0.9] * 4, ee_8=[0.8, 0.8, 0.79, 0.81], ee_6=[0.6] * 4)
    verdict = decide(_rows(quality, **times))
    assert verdict.sentence == (
        "On these 4 prompts org/my model can drop 2 of its 10 layers: ee:8 keeps 99% [99%, 99%] of the full model's "
        "ROUGE-L, and decodes 1.25× (1.23–1.27×) as fast."
    )
    assert verdict.is_sure and verdict.chosen is not None and verdict.chosen.role == ""
    assert verdict.next_line == "Next: depthdial generate 'org/my model' \"your prompt\" --depth ee:8"
    assert [(card.role, card.layers) for card in verdict.choices] == [
        ("Safest", "9 of 10 layers"),
        ("Balanced", "8 of 10 layers"),
        ("Fastest", "6 of 10 layers"),
    ]


def test_a_mean_that_keeps_enough_with_an_interval_that_does_not_is_said() -> None:
    verdict = decide(_rows({"full": FULL, "ee:8": [0.6, 0.3, 0.7, 0.4]}))
    assert verdict.chosen is not None and not verdict.is_sure
    assert "may be able to drop 2 of its 10 layers: ee:8 keeps 100% [42%, 158%]" in verdict.sentence
    assert verdict.sentence.endswith("The interval reaches below 95%: to be sure, judge it on more prompts.")
    assert "its time was not measured beside the full model's" in verdict.sentence


def test_one_prompt_settles_nothing() -> None:
    verdict = decide(_rows({"full": [0.5], "ee:8": [0.6]}))
    assert verdict.sentence.startswith(
        "On this one prompt the model may be able to drop 2 of its 10 layers: ee:8 keeps 120% of"
    )
    assert verdict.sentence.endswith("One prompt has no interval: to be sure, judge it on more prompts.")
    assert "no route keeps 99.5% of" in decide(_rows({"full": FULL, "ee:8": [0.1] * 4}), 0.995).sentence


def test_where_no_route_qualifies_the_closest_is_named() -> None:
    agreement = {"full": [1.0] * 3, "ee:9": [0.8, 0.82, 0.84], "ee:5": [0.3, 0.2, 0.1]}
    verdict = decide(_rows(agreement, metric="agreement"))
    assert verdict.chosen is None and verdict.metric == "agreement"
    assert verdict.sentence == (
        "On these 3 prompts no route keeps 95% of the full model's agreement: the closest, ee:9 with 9 of 10 layers, keeps "
        "82% [77%, 87%]; its time was not measured beside the full model's."
    )
    assert [choice.route.name for choice in verdict.choices] == ["ee:9"]  # the other keeps less than half
    assert decide(_rows(agreement, metric="agreement"), keep=0.8).chosen is not None


def test_the_interval_is_of_paired_sequences() -> None:
    """Sequences differ far more than routes do: unpaired, the interval would reach from 0 to 2."""
    full = np.array([0.01, 0.3, 0.99, 0.5])
    verdict = decide(_rows({"full": full.tolist(), "ee:9": (0.97 * full).tolist()}))
    assert verdict.is_sure and percent(verdict.choices[0].kept) == "97% [97%, 97%]"


def test_times_that_differ_more_than_the_routes_are_too_noisy_to_tell() -> None:
    times = _seconds(full=[1.0] * 4, ee_8=[0.8, 1.3, 0.7, 0.9])
    verdict = decide(_rows({"full": FULL, "ee:8": FULL}, **times))
    assert "measured times are too noisy to tell (0.77–1.43×)" in verdict.sentence
    assert verdict.choices[0].first_token_text == "not timed"


@pytest.mark.parametrize(
    ("full", "mine", "told"),
    [
        ((10.0, 10.0), (10.0, 10.0), "as full"),
        ((9.0, 11.0), (9.5, 10.4), "within noise"),
        ((10.0, 10.1), (5.0, 5.1), "2.00×"),
    ],
)
def test_the_time_to_the_first_token_is_told_beside_the_full_models(full: Any, mine: Any, told: str) -> None:
    def entry(name: str, ttft: tuple[float, float]) -> dict[str, Any]:
        times = {"median": 10.0 if name == "full" else 5.0 if told.endswith("×") else 10.0, "low": ttft[0], "high": ttft[1]}
        return {"route": name, "layers": 8, "batch": 1, "n_repeats": 5, "ttft_ms": times, "step_ms": times}

    timing = {"routes": [entry("full", full), entry("ee:8", mine)]}
    (choice,) = decide(_rows({"full": FULL, "ee:8": FULL}), timing=timing).choices
    assert choice.first_token_text.endswith(f" ms at batch 1 ({told})")


def test_equal_depth_is_settled_by_quality_and_time_never_chooses() -> None:
    quality = {"full": FULL, "a:8": FULL, "b:8": [q + 0.01 for q in FULL]}
    verdict = decide(_rows(quality, **_seconds(full=[1.0] * 4, a_8=[0.1] * 4, b_8=[0.9] * 4)))
    assert verdict.chosen is not None and verdict.chosen.route.name == "b:8"
    assert "--depth 0-7" in verdict.chosen.command  # a searched route's name is not in the grammar


def test_the_command_loads_the_adapter_and_keeps_the_prompts_depth() -> None:
    for model, told in (("smollm2-135m + elastic", "--adapter elastic"), ("m + specialist", "--adapter ADAPTER")):
        rows = _rows({"full": FULL, "ee:8": FULL}, model=lambda name, i, model=model: model)
        assert decide(rows, prompt_depth="route").choices[0].command.endswith(f"--depth ee:8 {told} --prompt-depth route")
    rows = _rows({"full": FULL, "elastic:8": FULL}, model=lambda name, i: "smollm2-135m + elastic")
    assert decide(rows).choices[0].command.endswith("--depth searched:8 --adapter elastic")  # of the adapter's family


@pytest.mark.parametrize(
    ("quality", "metric", "told"),
    [
        ({"ee:8": FULL}, "rouge_l", "the full model is not among the routes"),
        ({"full": FULL}, "rouge_l", "no route that drops layers was measured"),
        ({"full": FULL, "ee:8": FULL}, "nll", "the rows score no answer"),
        ({"full": [0.0] * 4, "ee:8": FULL}, "rouge_l", "the rows score no answer"),
    ],
)
def test_rows_without_an_answer_say_so(quality: Scores, metric: str, told: str) -> None:
    verdict = decide(_rows(quality, metric=metric))
    assert told in verdict.sentence and not verdict.choices and verdict.next_line == ""


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(InputError, match=r"Invalid keep .*: use a number above 0 and at most 1"):
        decide(_rows({"full": FULL}), keep)
