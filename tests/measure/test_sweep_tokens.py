"""Sweeps over token policies where a route would stand, and against another full model."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.weights import weights_hash
from depthdial.measure.similarity import similarity
from depthdial.measure.sweep import sweep
from depthdial.report.pages import write_report
from depthdial.report.study.summary import full_of, gather
from depthdial.routes import Route
from depthdial.rows.store import UnitStore
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import (
    Bernoulli,
    ConfidenceExit,
    FunctionPolicy,
    StaticRoutes,
    sequence_key,
    uniform_draws,
)
from tests.conftest import make_llama
from tests.tiny import tiny

ROUTE = Route((0, 2, 3, 5), 6)
RATES = (1.0, 0.5, 0.5, 0.5, 0.5, 1.0)
DRAWN = TokenDepth(Bernoulli(RATES, seed=2), 6)
EXIT = TokenDepth(ConfidenceExit("margin", 0.1), 6, "drop")
MEASURED = {"batch_decode_sec", "batch_prefill_sec", "step_sec", "decode_sec"}
PLACE = {"batch_size", "batch_steps", "settings_hash"}
NAMES = {"route", "route_layers"}


def run(model, tokenizer, task, *depths, **options):
    return sweep(
        model, tokenizer, task=task, routes=depths, **{"max_new_tokens": 6, "fidelity_tokens": 6, "batch_size": 3, **options}
    )


def scores(table: pa.Table, without: set[str] = frozenset()) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MEASURED | without} for row in table.to_pylist()]


@pytest.fixture
def few(small_task):
    """Four sequences, one of them without a reference."""
    return replace(small_task, examples=small_task.examples[2:6])


@pytest.mark.parametrize("key_values", ["project", "drop", "copy"])
def test_a_static_policy_has_the_routes_rows(model, tokenizer, small_task, key_values):
    """Whatever it leaves in the cache of layers that nobody runs; what that costs is told."""
    theirs, ours = (
        scores(run(model, tokenizer, small_task, depth), NAMES)
        for depth in (ROUTE, TokenDepth(StaticRoutes((ROUTE,)), 6, key_values))
    )
    projections = 2 * 2 * (32 * 32 + 2 * 32 * 16)  # of two skipped layers
    apart = {"decide_flops", "kv_bytes", "decode_flops", "weight_bytes", "layers_run", "cost"}
    for a, b in zip(theirs, ours, strict=True):
        assert {k: v for k, v in a.items() if k not in apart} == {k: v for k, v in b.items() if k not in apart}
        extra = projections * (a["new_tokens"] - 1) if key_values == "project" else 0
        assert b["decode_flops"] == a["decode_flops"] + extra
        assert (a["decide_flops"], b["decide_flops"]) == (None, 0.0)
        if b["new_tokens"] > 1:
            assert all(a[name] == b[name] for name in ("weight_bytes", "layers_run", "cost"))
        else:
            assert b["weight_bytes"] is None
    assert {row["new_tokens"] > 1 for row in ours} == {False, True}


def test_what_runs_everything_is_the_full_model_bit_for_bit(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, "full", TokenDepth(Bernoulli((1.0,) * 6), 6, name="all"))
    full, ours = rows.slice(0, 7), rows.slice(7)
    apart = {*NAMES, "decide_flops", "layers_run", "cost", "weight_bytes"}
    assert scores(full, apart) == scores(ours, apart)
    assert all((row["kl"], row["agreement"]) == (0.0, 1.0) for row in ours.to_pylist())
    assert set(ours["layers_run"].to_pylist()) <= {6.0, None}


@pytest.mark.parametrize("metrics", [("nll",), ("kl", "agreement"), ("rouge_l", "nll", "kl", "agreement")])
def test_rows_do_not_depend_on_batching(model, tokenizer, small_task, metrics):
    small, large = (
        scores(run(model, tokenizer, small_task, DRAWN, EXIT, metrics=metrics, batch_size=size), PLACE) for size in (1, 7)
    )
    for a, b in zip(small, large, strict=True):
        for name, value in a.items():
            if name in ("nll", "kl") and value is not None:
                assert value == pytest.approx(b[name], abs=1e-4)
            else:
                assert value == b[name], name
    assert len({row["layers_run"] for row in small}) > 3


def test_layers_run_are_those_of_the_answers_tokens_else_of_the_references(model, tokenizer, small_task):
    """By hand, from the draws: tokens from the second to the last but one are read, and so run."""
    generated = run(model, tokenizer, small_task, DRAWN).to_pylist()
    forced = run(model, tokenizer, small_task, DRAWN, metrics=("nll",)).to_pylist()
    assert not {"new_tokens", "decode_flops"} & {name for name, value in forced[0].items() if value is not None}
    for row, other, example in zip(generated, forced, small_task.examples, strict=True):
        n_prompt = len(tokenizer(example.instruction)["input_ids"])
        n_reference = len(tokenizer(example.reference)["input_ids"]) if example.reference else 0
        expected = [layers_by_hand(row["sequence_id"], n_prompt, n) for n in (row["new_tokens"], n_reference)]
        if expected != [None, None]:  # else those of the full model's own answer
            assert row["layers_run"] == (expected[1] if expected[0] is None else expected[0])
        assert other["layers_run"] == expected[1]
        assert row["cost"] == (None if row["layers_run"] is None else row["layers_run"] / 6)


def layers_by_hand(name, n_prompt: int, n_tokens: int) -> float | None:
    if n_tokens < 2:
        return None
    places = torch.arange(n_prompt, n_prompt + n_tokens - 1)[None]
    chance = uniform_draws(2, torch.tensor([sequence_key(name)]), places, 6)[:, 0]
    ran = chance < torch.tensor(RATES)[:, None]
    return pytest.approx(ran.sum(0).double().mean().item())


def test_samples_each_draw_their_own_layers(model, tokenizer, few):
    options = {"samples": 2, "temperature": 1.5}
    rows = run(model, tokenizer, few, DRAWN, **options)
    assert scores(rows, PLACE) == scores(run(model, tokenizer, few, DRAWN, **options, batch_size=4), PLACE)
    assert rows["sample"].to_pylist() == [0, 1] * 4
    assert len({row["layers_run"] for row in rows.to_pylist()}) > 2


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_sweep_goes_on_with_the_same_rows(tmp_path, model, tokenizer, few, monkeypatch, killed_after):
    whole = run(model, tokenizer, few, DRAWN, EXIT)
    written, real = [], UnitStore.write

    def dies(self, unit, rows):
        if len(written) == killed_after:
            raise KeyboardInterrupt
        real(self, unit, rows)
        written.append(unit)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, few, DRAWN, EXIT, out=tmp_path)
    redone = []
    monkeypatch.setattr(UnitStore, "write", lambda self, unit, rows: (redone.append(unit), real(self, unit, rows)))
    # Policies that are made anew are the same policies.
    again = [TokenDepth(Bernoulli(RATES, seed=2), 6), TokenDepth(ConfidenceExit("margin", 0.1), 6, "drop")]
    assert scores(run(model, tokenizer, few, *again, out=tmp_path)) == scores(whole)
    assert len(redone) == 4 - killed_after  # 2 batches x 2 policies


def constant(runs: bool) -> TokenDepth:
    policy = FunctionPolicy(lambda layer, hidden: torch.full(hidden.shape[:2], runs))
    return TokenDepth(policy, 6, name="mine")


@pytest.mark.slow
def test_another_policy_of_the_same_name_makes_rows_of_its_own(tmp_path, model, tokenizer, few):
    """Also a function that is put where an earlier one was."""
    found = []
    for seed in (0, 1):
        depth = TokenDepth(Bernoulli(RATES, seed), 6, name="mine")
        found.append(run(model, tokenizer, few, depth, out=tmp_path)["layers_run"].to_pylist())
    assert found[0] != found[1]
    for runs in (True, False) * 4:
        rows = run(model, tokenizer, few, constant(runs), metrics=("nll",), out=tmp_path / "f").to_pylist()
        assert {row["layers_run"] for row in rows} <= {6.0 * runs, None}


def test_folders_from_before_token_wise_depths_go_on_and_report(tmp_path, model, tokenizer, few):
    """Their units have whole layers, and no FLOPs of deciding."""
    routes = ("full", "uls:4")
    run(model, tokenizer, few, *routes, out=tmp_path)
    for path in tmp_path.glob("units/*.parquet"):
        table = pq.read_table(path).drop_columns(["decide_flops"])
        column = table.column_names.index("layers_run")
        pq.write_table(table.set_column(column, "layers_run", table["layers_run"].cast(pa.int64())), path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("units/*.parquet")}
    rows = run(model, tokenizer, few, *routes, DRAWN, TokenDepth(Bernoulli((1.0,) * 6), 6, name="all"), out=tmp_path)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert rows.num_rows == 16 and rows.schema.field("layers_run").type == pa.float64()
    assert rows["layers_run"].to_pylist()[:8] == [6.0] * 4 + [4.0] * 4
    found = {route.name: route for route in gather(rows)}
    assert full_of(gather(rows)).name == "full"
    assert found["uls:4"].fixed_layers is not None and found["bernoulli:project"].fixed_layers is None
    known = [row["layers_run"] for row in rows.to_pylist()[8:12] if row["layers_run"] is not None]
    assert found["bernoulli:project"].cost_layers == pytest.approx(sum(known) / len(known))
    assert "bernoulli:project" in write_report(tmp_path).read_text()


# Against another full model


def test_another_reference_changes_kl_and_agreement_alone(tmp_path, model, tokenizer, few):
    teacher = make_llama(seed=3)
    depths = ("full", "uls:4", DRAWN)
    own = run(model, tokenizer, few, *depths, out=tmp_path / "own")
    other = run(model, tokenizer, few, *depths, reference=teacher, out=tmp_path / "other")
    fidelity = {"kl", "agreement", "agreed", "settings_hash"}
    assert scores(own, fidelity) == scores(other, fidelity)
    assert all(row["kl"] > 0.01 for row in other.to_pylist())
    settings = [read_json(tmp_path / name / "settings.json", "settings") for name in ("own", "other")]
    assert settings[1] == {**settings[0], "reference": weights_hash(teacher)}
    with pytest.raises(InputError, match="reference"):
        run(model, tokenizer, few, *depths, out=tmp_path / "other")


def test_the_model_itself_as_the_reference_changes_nothing(model, tokenizer, few):
    depths = ("full", "uls:4", DRAWN)
    own, other = (run(model, tokenizer, few, *depths, **more) for more in ({}, {"reference": model}))
    assert scores(own, {"settings_hash"}) == scores(other, {"settings_hash"})


def test_kl_and_agreement_by_hand_against_a_reference_of_another_depth(model, tokenizer, few, weights_of, assert_same):
    teacher = make_llama(n_layers=4, seed=3)
    before = weights_of(teacher)
    rows = run(model, tokenizer, few, "full", metrics=("kl", "agreement"), reference=teacher).to_pylist()
    for row, example in zip(rows, few.examples, strict=True):
        ids = torch.tensor([tokenizer(example.instruction)["input_ids"]])
        answer = teacher.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        with torch.no_grad():
            ours, theirs = (one(answer).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1) for one in (model, teacher))
        kl = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
        assert row["kl"] == pytest.approx(kl, abs=1e-4)
        assert row["agreement"] == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    assert_same(before, weights_of(teacher))


def test_a_reference_of_other_tokens_is_refused(model, tokenizer, few):
    with pytest.raises(InputError, match="knows 96 tokens and this one 30"):
        run(model, tokenizer, few, "full", reference=tiny("llama"))


def test_the_model_is_bit_identical_afterwards(model, tokenizer, few, weights_of, assert_same):
    before = weights_of(model)
    run(model, tokenizer, few, DRAWN, EXIT)
    assert_same(before, weights_of(model))


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (DRAWN, {"prompt_depth": "route"}, "runs prompts at full depth"),
        (TokenDepth(Bernoulli(RATES), 4), {}, "for a model of 4 layers but this one has 6"),
        (TokenDepth(Bernoulli((0.5,) * 4), 6), {}, "4 rates for a model of 6 layers"),
        (TokenDepth(Bernoulli(RATES), 6, "forget"), {}, "Unknown key_values 'forget'"),  # type: ignore[arg-type]
        (Bernoulli(RATES), {}, "measured as TokenDepth"),
    ],
)
def test_bad_depths(model, tokenizer, few, depth, options, message):
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, few, depth, **options)


def test_two_policies_of_one_name_are_refused(model, tokenizer, few):
    with pytest.raises(InputError, match="Two different routes are called 'bernoulli:project'"):
        run(model, tokenizer, few, DRAWN, TokenDepth(Bernoulli(RATES, seed=3), 6))


def test_similarity_has_no_token_wise_depths(model, tokenizer, few):
    with pytest.raises(InputError, match="sweep it instead"):
        similarity(model, tokenizer, task=few, routes=[DRAWN])
