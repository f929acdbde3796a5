"""Directions of metrics by name."""

import numpy as np
import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.metrics import DIRECTIONS, MEASURED, direction_of, higher_is_better

HIGHER = (
    *("rouge_1", "rouge_l", "rougeL", "rouge_lsum", "agreement", "accuracy", "acc_norm", "exact_match", "f1", "f1_score"),
    *("bleu", "sacrebleu", "meteor", "cosine_final", "pass@1", "pass_at_10", "reward", "score", "judge_score", "recall@5"),
    *("rouge_l_f1", "log_likelihood", "tokens_per_sec", "win_rate", "bertscore_f1", "edit_similarity", "rewards/mean"),
)
LOWER = (
    *("kl", "nll", "answer_nll", "cross_entropy", "val_cross_entropy", "loss", "error_rate", "error_rates", "wer", "cer"),
    *("perplexity", "ppl", "sec", "decode_sec", "bytes", "kv_bytes", "ms", "step_ms", "edit_distance", "mse", "brier"),
    *("toxicity", "toxicity_score", "brier_score", "evalLoss", "word_error_rate", "KL", "neg_log_likelihood", "losses"),
)
UNKNOWN = ("vibes", "x", "", "neg_kl", "1-wer", "rouge_l_drop", "accuracy_loss", "loss_gap", "kl_reduction", "length")


@pytest.mark.parametrize("name", HIGHER)
def test_more_is_better(name: str) -> None:
    assert higher_is_better(name)


@pytest.mark.parametrize("name", LOWER)
def test_less_is_better(name: str) -> None:
    assert not higher_is_better(name)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_does_not_say_is_refused_and_never_guessed(name: str) -> None:
    assert direction_of(name) is None
    with pytest.raises(InputError, match="does not say whether high or low values are good: give higher_is_better"):
        higher_is_better(name)
    assert higher_is_better(name, True) and not higher_is_better(name, False)


def test_what_is_given_overrides_the_name_and_is_checked() -> None:
    assert higher_is_better("kl", True)
    with pytest.raises(InputError, match="higher_is_better is 'yes'"):
        higher_is_better("kl", "yes")  # type: ignore[arg-type]


def test_every_entry_says_one_thing_by_its_words_too() -> None:
    assert DIRECTIONS.keys() >= set(MEASURED)
    for name, is_higher_better in DIRECTIONS.items():
        assert direction_of(f"mean_{name}") is is_higher_better, name


@pytest.mark.parametrize("metric", [name for name in LOWER if "@" not in name])
def test_an_oracle_of_a_loss_goes_to_the_lowest(metric: str) -> None:
    rows = {"sequence_id": [0, 0, 1, 1], "route": ["ee:3", "full"] * 2, "layers_run": [3, 6] * 2, metric: [2.0, 1.0] * 2}
    curve = dd.oracle(rows, metric=metric, n_bootstrap=0)
    assert not curve.higher_is_better and curve.matches_full_at == 6 and curve.value_at(6) == 1.0


def test_oracles_of_a_metric_without_a_direction_say_so() -> None:
    rows = {"sequence_id": [0, 0], "route": ["a", "full"], "layers_run": [1, 2], "vibes": [0.1, 0.2]}
    with pytest.raises(InputError, match="The name of the metric 'vibes'"):
        dd.oracle(rows, metric="vibes")
    assert dd.oracle(rows, metric="vibes", higher_is_better=False, n_bootstrap=0).matches_full_at == 1
    twice = {name: np.repeat(column, 2) for name, column in rows.items()} | {"sample": [0, 1] * 2}
    with pytest.raises(InputError, match="The name of the metric 'vibes'"):
        dd.predictable_oracle(twice, metric="vibes")


def test_the_predictable_oracle_minimises_kl() -> None:
    s, r, k = np.meshgrid(range(50), range(3), range(4), indexing="ij")
    rows = {
        "sequence_id": s.ravel(),
        "route": np.array(["ee:3", "ee:5", "full"])[r.ravel()],
        "sample": k.ravel(),
        "kl": np.array([1.0, 0.5, 0.0])[r.ravel()],
        "layers_run": np.array([3, 5, 6])[r.ravel()],
    }
    curve = dd.predictable_oracle(rows, metric="kl", n_bootstrap=20, n_permutations=1)
    assert curve.matches_full_at == 6 and curve.full_value == 0 and not curve.higher_is_better
    at = curve.at(6)
    assert at["predictable"] == at["plug_in"] == at["mixture"] == 0
    assert curve.at(5)["mixture"] == pytest.approx(1 / 3) and curve.at(4)["predictable"] >= 0.5
    low, high = curve.predictable_interval.T
    assert (low <= high).all()
    assert {one.route: one.value for one in curve.fixed} == {"ee:3": 1.0, "ee:5": 0.5, "full": 0.0}
    turned = dd.predictable_oracle(rows, metric="kl", n_bootstrap=0, n_permutations=0, higher_is_better=True)
    assert turned.matches_full_at == 3
