"""The forecast of self-speculation against simulations of it, and what it says of bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import depthdial as dd
from depthdial.errors import InputError
from depthdial.oracles.drafts import expected_accepted, read_drafts, rounds_of
from depthdial.oracles.speculation import RoundTimes, speculation_forecast
from depthdial.routes import Route, leading_layers
from tests.latencies import affine, make_latency

LATENCY = make_latency()
ROUTES = {"full": "0-5", "uls:3": "0,2,4", "late": "0-3,5"}


def make_rows(acceptance, tokens, **columns):
    """Rows of (n_sequences, 2) acceptances of `uls:3` and `late` on full answers of (n_sequences,) tokens.

    The first token, which is the prompt's, agrees in any case.
    """
    n, steps = len(tokens), np.asarray(tokens, dtype=float)[:, None] - 1
    agreement = (1 + steps * np.asarray(acceptance, dtype=float)) / (1 + steps)
    table = np.concatenate([np.ones((n, 1)), agreement], axis=1)
    return {
        "sequence_id": np.repeat([f"s{i}" for i in range(n)], 3),
        "route": np.tile(list(ROUTES), n),
        "route_layers": np.tile(list(ROUTES.values()), n),
        "n_layers": np.full(3 * n, 6),
        "agreement": table.ravel(),
        "new_tokens": np.repeat(np.asarray(tokens), 3),
        "prompt_tokens": np.full(3 * n, 20),
    } | columns


def simulated(chances, k, rng, n_rounds=40_000):
    """Mean tokens of a round, drawn token by token; each place of a draft has its own chance."""
    total = 0
    for _ in range(n_rounds):
        accepted = 0
        while accepted < k and rng.random() < chances:
            accepted += 1
        total += accepted + 1
    return total / n_rounds


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_speedups_are_those_of_a_simulation(chance, k):
    tokens_a_round = simulated(chance, k, np.random.default_rng(0))
    rows = make_rows(np.full((3, 2), chance), [101, 101, 101])
    forecast = speculation_forecast(rows, LATENCY, draft_tokens=(k,), batch_rows=(1, 4), context_tokens=16, n_bootstrap=0)
    for n_rows in (1, 4):
        for name, layers, reused in (("uls:3", 3, 1), ("late", 5, 4)):
            found = forecast.at(n_rows, name)
            step, draft = affine(6, n_rows, 1, 16), affine(layers, n_rows, 1, 16)
            check = affine(6, n_rows, k + 1, 16) - reused * 1e-4 * n_rows * k
            assert found.accepted_tokens + 1 == pytest.approx(tokens_a_round, rel=0.02)
            assert found.speedup == pytest.approx(tokens_a_round * step / (k * draft + check), rel=0.02)
            assert found.speedup_without_reuse < found.speedup
            assert (found.layers, found.reused_layers, found.draft_tokens) == (layers, reused, k)
            assert (found.step_sec, found.draft_sec, found.check_sec) == pytest.approx((step, draft, check))


def test_sequences_of_unlike_acceptance_count_by_their_rounds():
    rng, chances, steps, k = np.random.default_rng(1), np.array([0.1, 0.5, 0.9]), np.array([40_000, 20_000, 10_000]), 4
    rounds = 0
    for chance, n in zip(chances, steps, strict=True):
        done = 0
        while done < n:
            misses = np.flatnonzero(rng.random(k) >= chance)
            done += 1 + (misses[0] if len(misses) else k)
            rounds += 1
    rows = make_rows(np.repeat(chances[:, None], 2, axis=1), steps + 1)
    found = speculation_forecast(rows, LATENCY, draft_tokens=(k,), n_bootstrap=0).settings[0]
    assert found.accepted_tokens + 1 == pytest.approx(steps.sum() / rounds, rel=0.01)
    assert found.acceptance == pytest.approx(np.average(chances, weights=steps))


@given(st.floats(0, 1), st.integers(0, 9))
def test_the_sum_is_the_closed_form(chance, k):
    closed = k + 1 if chance == 1 else (1 - chance ** (k + 1)) / (1 - chance)
    assert 1 + expected_accepted(chance, k) == pytest.approx(closed)


@given(st.text("01", max_size=30), st.integers(0, 9))
def test_rounds_are_counted_token_by_token(agreed, k):
    """As decoding would: draft k, keep those before the first that is not the full model's, and its token in that place."""
    answer = list(agreed)
    done, rounds = 0, 0
    while done < len(answer):
        for _ in range(k):
            if done < len(answer) and answer[done] == "1":
                done += 1
            else:
                break
        done += 1
        rounds += 1
    assert rounds_of("1" + agreed, k) == rounds


def test_known_tokens_win_over_means():
    """Agreement that comes in runs gives longer accepted drafts than the same share, evenly spread."""
    in_runs, spread = "1" + "1" * 8 + "0" * 8, "1" + "10" * 8
    rows = make_rows([[0.5, 0.5]], [17], agreed=np.array([in_runs, in_runs, spread]))
    found = speculation_forecast(rows, LATENCY, draft_tokens=(4,), batch_rows=1)
    assert found.from_tokens
    assert found.at(1, "uls:3").accepted_tokens == pytest.approx(16 / (2 + 7) - 1)
    assert found.at(1, "late").accepted_tokens == pytest.approx(1)
    places = dict(found.by_position)
    assert places["late"][0] == 1 and places["late"][1] == 0 and np.isnan(places["late"][2])
    assert places["uls:3"] == pytest.approx((2 / 9, 1, 1, 0.5))
    gaps = make_rows([[0.5, 0.5]], [17], agreed=np.array([in_runs, None, spread]))
    assert not speculation_forecast(gaps, LATENCY, batch_rows=1).from_tokens


def test_rows_of_a_sweep_tell_token_by_token(model, tokenizer, small_task):
    rows = dd.sweep(model, tokenizer, task=small_task, routes=["full", "uls:3", "0-3,5"], metrics=["agreement"])
    for row in rows.to_pylist():
        assert row["agreed"].count("1") / len(row["agreed"]) == pytest.approx(row["agreement"])
        assert row["agreed"][0] == "1" and (row["route"] != "full" or set(row["agreed"]) == {"1"})
    forecast = speculation_forecast(rows, LATENCY, draft_tokens=(2,), batch_rows=1)
    assert forecast.from_tokens
    texts = [row["agreed"] for row in rows.to_pylist() if row["route"] == "uls:3"]
    tokens_a_round = sum(len(text) - 1 for text in texts) / sum(rounds_of(text, 2) for text in texts)
    assert forecast.at(1, "uls:3").accepted_tokens == pytest.approx(tokens_a_round - 1)


def test_off_is_the_plain_step_and_the_verdict_is_plain():
    rows = make_rows([[0.2, 0.3], [0.3, 0.4]], [30, 40])
    forecast = speculation_forecast(rows, LATENCY)
    off = [one for one in forecast.settings if not one.draft_tokens]
    assert off and all((one.speedup, one.low, one.high, one.check_sec) == (1, 1, 1, one.step_sec) for one in off)
    assert forecast.best.draft_tokens and forecast.best.speedup < 1
    assert forecast.verdict.startswith(f"off: expected {forecast.best.speedup:.2f}x [")
    assert sorted({one.rows for one in forecast.settings}) == [1, 2, 8]
    good = speculation_forecast(make_rows(np.full((8, 2), 0.99), [50] * 8), make_latency(clock=lambda n, r, t, c: 1e-3 * n))
    assert good.verdict.startswith("on: expected") and good.best.low > 1
    printed = str(good)
    assert "batch 8: on" in printed and "self-speculation on tiny, 8 sequences" in printed
    frame = good.to_pandas()
    assert len(frame) == len(good.settings) == 3 * 2 * 5 and set(frame["draft_tokens"]) == {0, 1, 2, 4, 8}


def test_a_verdict_that_the_sequences_do_not_decide():
    rng = np.random.default_rng(0)
    rows = make_rows(rng.choice([0.0, 1.0], (12, 2)), [30] * 12)
    clock = make_latency(clock=lambda n, r, t, c: 1e-3 * n + 1e-4 * t)
    best = speculation_forecast(rows, clock, batch_rows=1).best
    balanced = dataclasses.replace(best, low=0.9, high=1.3, speedup=1.1)
    assert balanced.verdict.startswith("undecided: expected 1.10x [0.90, 1.30]")
    assert best.low < best.speedup < best.high


def test_intervals_cover_the_expectation_and_are_seeded():
    rng = np.random.default_rng(3)
    rows = make_rows(rng.random((40, 2)), rng.integers(10, 60, 40))
    one, same, other = (speculation_forecast(rows, LATENCY, batch_rows=1, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    for setting in one.settings:
        assert setting.low <= setting.speedup <= setting.high
        assert setting.draft_tokens == 0 or setting.high - setting.low < 0.5


def test_tables_of_any_kind_and_samples_are_read():
    rows = make_rows([[0.2, 0.4], [0.6, 0.8]], [30, 40])
    frame = pd.DataFrame(rows)
    assert speculation_forecast(frame, LATENCY) == speculation_forecast(rows, LATENCY)
    np.testing.assert_allclose(read_drafts(rows).acceptance, [[0.2, 0.4], [0.6, 0.8]])
    other = make_rows([[0.4, 0.2], [0.4, 0.4]], [30, 40])
    twice = pd.concat([frame.assign(sample=0), frame.assign(sample=1, agreement=other["agreement"])])
    np.testing.assert_allclose(read_drafts(twice).acceptance, [[0.3, 0.3], [0.5, 0.6]])
    bare = {name: rows[name] for name in ("sequence_id", "route", "n_layers", "agreement")}
    bare["route"] = np.where(bare["route"] == "late", "0-3,5", bare["route"])
    assert [route.layers for route in read_drafts(bare).routes] == [(0, 2, 4), (0, 1, 2, 3, 5)]
    assert speculation_forecast(bare, LATENCY).context_tokens == LATENCY.context()
    assert speculation_forecast(rows, LATENCY).context_tokens == pytest.approx(20 + (29 * 15 + 39 * 20) / 68)


def test_rules_and_token_wise_depths_do_not_draft():
    rows = make_rows([[0.5, 0.5], [0.5, 0.5]], [9, 9])
    rows["route_layers"] = np.array(["0-5", "0,2,4", "0-3,5", "0-5", "0,2,5", "0-3,5"])
    assert [route.name for route in read_drafts(rows).routes] == ["late"]
    with pytest.raises(InputError, match="The route 'uls:3' does not run the same layers for every sequence"):
        speculation_forecast(rows, LATENCY, routes=["uls:3"])


def test_adapters_share_no_prefix_with_the_untouched_model():
    rows = make_rows([[0.5, 0.5]], [9], model=np.array(["tiny", "tiny", "tiny + elastic"]))
    forecast = speculation_forecast(rows, LATENCY, batch_rows=1)
    found = forecast.at(1, "late")
    assert found.reused_layers == 0 and found.speedup == found.speedup_without_reuse
    assert forecast.at(1, "uls:3").reused_layers == 1
    assert speculation_forecast(rows, LATENCY, batch_rows=1, reuse_prefix=True).at(1, "late").reused_layers == 4


def test_prefixes_end_at_the_first_skipped_layer():
    assert [leading_layers(Route(layers, 6)) for layers in ((1, 2), (0, 2, 4), (0, 1, 2, 5), (0, 1, 2, 3, 4, 5))] == [
        0,
        1,
        3,
        6,
    ]
    times = RoundTimes.of(LATENCY, Route((0, 1, 2, 5), 6), 2, 4, 16)
    assert times.whole_check_sec - times.check_sec == pytest.approx(3 * 1e-4 * 2 * 4)
    assert RoundTimes.of(LATENCY, Route((0, 2), 6), 1, 0).check_sec == LATENCY.route_sec()


GOOD = make_rows([[0.5, 0.5]], [9])


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ({k: v for k, v in GOOD.items() if k != "agreement"}, {}, "no column 'agreement', which stands for acceptance"),
        ({k: v for k, v in GOOD.items() if k != "n_layers"}, {}, "no column 'n_layers'"),
        ({k: v for k, v in GOOD.items() if k != "sequence_id"}, {}, "no column 'sequence_id'"),
        ({k: v[:0] for k, v in GOOD.items()}, {}, "The table has no rows"),
        ({**GOOD, "agreement": np.array([1, np.nan, 0.5])}, {}, "of route 'uls:3' on sequence 's0' is missing"),
        ({**GOOD, "n_layers": np.array([6, 6, 8])}, {}, "models with 6, 8 layers"),
        ({**GOOD, "new_tokens": np.array([1, 1, 1])}, {}, "are of one token each"),
        ({k: v[:1] for k, v in GOOD.items()}, {}, "no route that could draft, only full"),
        (make_rows([[0.5, 0.5]], [9], n_layers=np.full(3, 8)), {}, "rows or routes are of a model with 8"),
        (GOOD | {"head_flops": np.full(3, 9.0)}, {}, "whose head has another size"),
        (GOOD | {"n_layers": np.array(["six"] * 3)}, {}, "'n_layers' does not hold numbers"),
        (GOOD | {"agreement": np.array(["x"] * 3)}, {}, "'agreement' does not hold numbers"),
        (GOOD | {"new_tokens": np.array([9, 9])}, {}, "'new_tokens' and 'route' differ in length"),
        (GOOD, {"routes": ["x"]}, "No row has the route 'x': the table has full, uls:3, late"),
        (GOOD, {"draft_tokens": (0,)}, "Drafts of 0 tokens alone are speculation off"),
        (GOOD, {"draft_tokens": ()}, "The argument draft_tokens is empty"),
        (GOOD, {"draft_tokens": (-1,)}, "Invalid draft_tokens -1"),
        (GOOD, {"batch_rows": (0,)}, "Invalid batch_rows 0"),
        (GOOD, {"confidence": 1}, "Invalid confidence 1"),
        (GOOD, {"n_bootstrap": -1}, "Invalid n_bootstrap -1"),
        (GOOD, {"context_tokens": -1}, "Invalid context_tokens -1"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_in_a_sentence(rows, options, told):
    with pytest.raises(InputError, match=told) as caught:
        speculation_forecast(rows, LATENCY, **options)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_batch_that_was_not_forecast_is_refused(tmp_path):
    forecast = speculation_forecast(GOOD, LATENCY, n_bootstrap=0)
    with pytest.raises(InputError, match="no forecast for 3 rows: it is for 1, 2, 8 rows of uls:3, late"):
        forecast.at(3)
    with pytest.raises(InputError, match="no latency model file"):
        speculation_forecast(GOOD, tmp_path)
    LATENCY.save(tmp_path / "bench.json")
    assert speculation_forecast(GOOD, tmp_path, n_bootstrap=0) == forecast
