from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import depthdial as dd
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.measure.similarity import similarity
from depthdial.measure.sweep import Sweep, sweep
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.sharing import share_work
from depthdial.rows.store import UnitStore

ROUTES = ["full", "uls:4", "ee:3", "rls:3@5"]
MEASURED = {"batch_decode_sec", "batch_prefill_sec", "step_sec", "decode_sec"}


def run(model, tokenizer, task, **options):
    return sweep(
        model,
        tokenizer,
        task=task,
        **{"routes": ROUTES, "max_new_tokens": 6, "fidelity_tokens": 6, "batch_size": 3, **options},
    )


def scores(table: pa.Table) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in table.to_pylist()]


def test_a_row_for_every_sequence_and_route(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task).to_pylist()
    assert [(r["route"], r["sequence_id"]) for r in rows] == [(n, f"small-{i}") for n in ROUTES for i in range(7)]
    for row in rows:
        assert row["layers_run"] == {"full": 6, "uls:4": 4, "ee:3": 3, "rls:3@5": 3}[row["route"]]
        assert row["cost"] == row["layers_run"] / 6
        assert 1 <= row["new_tokens"] <= 6
        assert row["finish_reason"] == "eos" or row["new_tokens"] == 6
        assert row["answer"] is row["prompt"] is row["reference"] is None and len(row["answer_hash"]) == 16
        assert 0 <= row["agreement"] <= 1 and row["kl"] >= 0
        assert row["decode_sec"] > 0
        has_reference = row["sequence_id"] != "small-5"
        assert (row["rouge_l"] is not None) == (row["nll"] is not None) == has_reference
    assert all((r["kl"], r["agreement"]) == (0.0, 1.0) for r in rows if r["route"] == "full")
    assert max(r["kl"] for r in rows) > 0.1
    drawn = {r["route_layers"] for r in rows if r["route"] == "rls:3@5"}
    rule = Route.parse("rls:3@5", 6)
    assert drawn == {str(rule.for_sequence(f"small-{i}")) for i in range(7)}


def test_scores_do_not_depend_on_batching(model, tokenizer, small_task):
    small, large = (scores(run(model, tokenizer, small_task, batch_size=n)) for n in (1, 7))
    exact = ("sequence_id", "route_layers", "new_tokens", "answer_hash", "rouge_l", "agreement", "decode_flops")
    for a, b in zip(small, large, strict=True):
        assert [a[name] for name in exact] == [b[name] for name in exact]
        assert a["kl"] == pytest.approx(b["kl"], abs=1e-4)


def test_nll_of_the_full_route_is_the_plain_models(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, routes=["full"], metrics=("nll",)).to_pylist()
    for row, example in zip(rows, small_task.examples, strict=True):
        if example.reference is None:
            continue
        prompt, answer = tokenizer(example.instruction)["input_ids"], tokenizer(example.reference)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert row["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item(), abs=1e-4)
        assert row["new_tokens"] is None and row["kl"] is None  # nothing was generated for this


def test_the_prompt_on_the_route_is_the_views_own_generation(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, routes=["ee:3"], prompt_depth="route", keep_text=True).to_pylist()
    shallow = dd.view(model, "ee:3")
    for row, example in zip(rows, small_task.examples, strict=True):
        ids = torch.tensor([tokenizer(example.instruction)["input_ids"]])
        out = shallow.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert row["answer"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert row["prompt"] == tokenizer.decode(ids[0], skip_special_tokens=True) and row["reference"] == example.reference
    full = run(model, tokenizer, small_task, routes=["ee:3"]).to_pylist()
    assert rows[0]["prompt_flops"] == pytest.approx(full[0]["prompt_flops"] / 2)


@pytest.mark.parametrize(
    "killed_after", [0, pytest.param(1, marks=pytest.mark.matrix), 4, pytest.param(9, marks=pytest.mark.matrix)]
)
def test_a_killed_sweep_goes_on_and_ends_with_the_same_table(
    tmp_path, model, tokenizer, small_task, monkeypatch, killed_after
):
    whole = run(model, tokenizer, small_task)
    written, real = [], UnitStore.write

    def dies(self, unit, rows):
        if len(written) == killed_after:
            raise KeyboardInterrupt
        real(self, unit, rows)
        written.append(unit)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, small_task, out=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("units/*.parquet")}
    assert len(kept) == killed_after
    redone = []
    monkeypatch.setattr(UnitStore, "write", lambda self, unit, rows: (redone.append(unit), real(self, unit, rows)))
    again = run(model, tokenizer, small_task, out=tmp_path)
    assert scores(again) == scores(whole)
    assert len(redone) == 12 - killed_after  # 3 batches x 4 routes
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_more_routes_and_sequences_are_added_to_a_folder(tmp_path, model, tokenizer, small_task, monkeypatch):
    few = replace(small_task, examples=small_task.examples[:3])
    run(model, tokenizer, few, routes=["full"], out=tmp_path)
    redone, real = [], UnitStore.write
    monkeypatch.setattr(UnitStore, "write", lambda self, unit, rows: (redone.append(unit), real(self, unit, rows)))
    table = run(model, tokenizer, small_task, routes=["full", "ee:2"], out=tmp_path)
    assert table.num_rows == 14 and len(redone) == 5


def test_other_settings_never_mix(tmp_path, model, tokenizer, small_task):
    run(model, tokenizer, small_task, routes=["full"], out=tmp_path)
    with pytest.raises(InputError, match=r"another max_new_tokens \(6 then, 7 now\)"):
        run(model, tokenizer, small_task, routes=["full"], out=tmp_path, max_new_tokens=7)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match="weights_hash"):
        run(model, tokenizer, small_task, routes=["full"], out=tmp_path)


def test_a_read_only_folder_is_told(tmp_path, model, tokenizer, small_task):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="Cannot write"):
        run(model, tokenizer, small_task, out=tmp_path / "file" / "out")


def test_logits_that_are_not_finite_stop_the_sweep_with_its_rows_kept(tmp_path, model, tokenizer, small_task):
    with torch.no_grad():
        model.model.layers[5].mlp.down_proj.weight.fill_(torch.nan)
    options = {"routes": ["ee:3", "full"], "out": tmp_path, "metrics": ("rouge_l", "nll")}
    with pytest.raises(InputError, match=r"nll is nan .* on route 'full'.* float32"):
        run(model, tokenizer, small_task, prompt_depth="route", **options)
    assert len(list(tmp_path.glob("units/*.parquet"))) == 1  # early exit never met the broken layer


def test_the_base_is_bit_identical_afterwards(model, tokenizer, small_task, weights_of, assert_same):
    before = weights_of(model)
    run(model, tokenizer, small_task)
    assert_same(before, weights_of(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("bleu",)}, "Unknown metric 'bleu'"),
        ({"metrics": ()}, "Unknown metric"),
        ({"batch_size": 0}, "Invalid batch_size"),
        ({"max_new_tokens": 0}, "Invalid max_new_tokens"),
        ({"prompt_depth": "half"}, "Unknown prompt depth 'half'"),
        ({"routes": []}, "No route was given"),
        ({"routes": ["uls:7"]}, "asks for 7 of 6 layers"),
        ({"routes": [Route((0, 1), 4)]}, "for a model of 4 layers but this one has 6"),
        ({"routes": [Route((0, 1), 6, "x"), Route((0, 2), 6, "x")]}, "Two different routes are called 'x'"),
    ],
)
def test_bad_arguments(model, tokenizer, small_task, options, message):
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, small_task, **options)


def test_unknown_arguments_raise(model, tokenizer, small_task):
    with pytest.raises(TypeError, match="beams"):
        run(model, tokenizer, small_task, beams=4)


def test_routes_with_the_same_layers_run_once(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, routes=["ee:3", "0-2", "uls:6", "full"])
    assert list(dict.fromkeys(rows["route"].to_pylist())) == ["ee:3", "uls:6"]


def test_an_oracle_reads_the_rows(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task)
    curve = dd.oracle(rows, metric="agreement")
    assert curve.matches_full_at is not None and curve.matches_full_at <= 6
    with pytest.raises(InputError):
        dd.oracle(rows, metric="rouge_l")  # one sequence has no reference


# Sampled answers

SAMPLED = {"samples": 3, "temperature": 1.5}


def cells(table: pa.Table) -> dict[tuple, dict]:
    return {(row["route"], row["sequence_id"], row["sample"]): row for row in scores(table)}


def test_every_sample_is_a_row_of_its_own(model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, **SAMPLED).to_pylist()
    expected = [(name, f"small-{i}", sample) for name in ROUTES for i in range(7) for sample in range(3)]
    assert [(row["route"], row["sequence_id"], row["sample"]) for row in rows] == expected
    for row in rows:
        assert row["nll"] is row["kl"] is row["agreement"] is None
        assert (row["rouge_1"] is not None) == (row["rouge_l"] is not None) == (row["sequence_id"] != "small-5")
        assert row["batch_size"] % 3 == 0 and row["batch_decode_sec"] > 0
        assert row["finish_reason"] == "eos" or row["new_tokens"] == 6
    by_cell = {}
    for row in rows:
        by_cell.setdefault((row["route"], row["sequence_id"]), set()).add(row["answer_hash"])
    assert max(map(len, by_cell.values())) == 3
    # The prompt's own pass gives the first token's distribution on every route; the routes must not share the draw too.
    first = {row["answer_hash"] for row in rows if row["sequence_id"] == "small-1"}
    assert len(first) > 3


def test_greedy_rows_are_not_numbered_and_their_settings_are_as_before_sampling(tmp_path, model, tokenizer, small_task):
    rows = run(model, tokenizer, small_task, out=tmp_path)
    assert rows["sample"].null_count == rows.num_rows
    assert not {"samples", "temperature", "top_p", "policy"} & read_json(tmp_path / "settings.json", "settings").keys()


def test_a_tiny_temperature_is_the_greedy_sweep(model, tokenizer, small_task):
    greedy = run(model, tokenizer, small_task, metrics=("rouge_l",)).to_pylist()
    sampled = run(model, tokenizer, small_task, samples=2, temperature=1e-4).to_pylist()
    for row in greedy:
        answers = [r for r in sampled if (r["route"], r["sequence_id"]) == (row["route"], row["sequence_id"])]
        exact = ("answer_hash", "rouge_l", "new_tokens", "finish_reason", "decode_flops", "route_layers")
        assert [[r[name] for name in exact] for r in answers] == 2 * [[row[name] for name in exact]]


def test_a_sample_depends_on_its_own_cell_alone(model, tokenizer, small_task):
    whole = cells(run(model, tokenizer, small_task, **SAMPLED))
    exact = ("answer_hash", "rouge_l", "new_tokens", "route_layers")
    for options in ({"batch_size": 7}, {"routes": ["rls:3@5", "uls:4"]}, {"samples": 2}):
        part = cells(run(model, tokenizer, small_task, **{**SAMPLED, **options}))
        assert part.keys() <= whole.keys()
        assert all([row[name] for name in exact] == [whole[cell][name] for name in exact] for cell, row in part.items())


@pytest.mark.slow
def test_another_seed_or_policy_draws_other_answers(tmp_path, model, tokenizer, small_task):
    def hashes(task=small_task, **options):
        return run(model, tokenizer, task, **{**SAMPLED, **options})["answer_hash"].to_pylist()

    first = hashes()
    assert hashes() == first
    assert hashes(task=replace(small_task, seed=1)) != first
    assert hashes(temperature=0.7) != first
    assert hashes(top_p=0.5) != first
    run(model, tokenizer, small_task, out=tmp_path, **SAMPLED)
    for options in ({"temperature": 0.7}, {"top_p": 0.5}, {"samples": 2}):
        with pytest.raises(InputError, match=next(iter(options))):
            run(model, tokenizer, small_task, out=tmp_path, **{**SAMPLED, **options})
    with pytest.raises(InputError, match="samples"):
        run(model, tokenizer, small_task, out=tmp_path, metrics=("rouge_1", "rouge_2", "rouge_l"))


@pytest.mark.parametrize("killed_after", [pytest.param(1, marks=pytest.mark.matrix), 7])
def test_a_killed_sampled_sweep_ends_with_the_same_rows(tmp_path, model, tokenizer, small_task, monkeypatch, killed_after):
    torch.manual_seed(5)
    whole = run(model, tokenizer, small_task, **SAMPLED)
    written, real = [], UnitStore.write

    def dies(self, unit, rows):
        if len(written) == killed_after:
            raise KeyboardInterrupt
        real(self, unit, rows)
        written.append(unit)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, small_task, out=tmp_path, **SAMPLED)
    monkeypatch.setattr(UnitStore, "write", real)
    torch.manual_seed(6)
    assert scores(run(model, tokenizer, small_task, out=tmp_path, **SAMPLED)) == scores(whole)


def test_units_from_before_there_were_samples_are_collected(tmp_path, model, tokenizer, small_task):
    run(model, tokenizer, small_task, routes=["full"], out=tmp_path)
    for path in tmp_path.glob("units/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["sample"]), path)
    table = run(model, tokenizer, small_task, routes=["full", "ee:2"], out=tmp_path)
    assert table.num_rows == 14 and table["sample"].null_count == 14
    assert table.schema.equals(run(model, tokenizer, small_task, routes=["full"]).schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": -1}, "Invalid samples"),
        ({"samples": 2.5}, "Invalid samples"),
        ({"samples": True}, "Invalid samples"),
        ({"samples": 2, "temperature": 0.0}, "at 0 all samples are the same"),
        ({"samples": 2, "temperature": -1.0}, "Invalid temperature"),
        ({"samples": 2, "top_p": 0.0}, "Invalid top_p"),
        ({"temperature": 0.7}, "for sampled answers: say how many"),
        ({"top_p": 0.9}, "for sampled answers: say how many"),
        ({"samples": 2, "metrics": ("rouge_l", "nll")}, "nll does not depend on the answers"),
    ],
)
def test_bad_arguments_of_sampling(model, tokenizer, small_task, options, message):
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, small_task, **options)


def test_agreement_is_scored_on_every_answer_drawn_from_the_full_model(model, tokenizer, small_task):
    options = {"samples": 3, "temperature": 0.8, "routes": ["full", "ee:3"], "keep_text": True}
    both = run(model, tokenizer, small_task, metrics=("rouge_l", "kl", "agreement"), **options).to_pylist()
    alone = run(model, tokenizer, small_task, metrics=("agreement",), **options).to_pylist()
    key = ("route", "sequence_id", "sample")
    assert [tuple(r[k] for k in key) for r in both] == [
        (route, f"small-{i}", n) for route in ("full", "ee:3") for i in range(7) for n in range(3)
    ]
    assert [(*(r[k] for k in key), r["agreement"]) for r in both] == [(*(r[k] for k in key), r["agreement"]) for r in alone]
    assert all((r["kl"], r["agreement"]) == (0.0, 1.0) for r in both if r["route"] == "full")
    # The answers that are drawn for the full route are the ones that every route is scored on.
    drawn = {(r["sequence_id"], r["sample"]): r for r in both if r["route"] == "full"}
    n_compared = 0
    prompts = {e.id: tokenizer(e.instruction)["input_ids"] for e in small_task.examples}
    for row in (r for r in both if r["route"] == "ee:3"):
        of_full = drawn[row["sequence_id"], row["sample"]]
        answer = tokenizer(of_full["answer"])["input_ids"]
        answer += [tokenizer.eos_token_id] * (of_full["finish_reason"] == "eos")
        if len(answer) != of_full["new_tokens"]:  # other special tokens were drawn, which are not in the text
            continue
        n_compared += 1
        prompt = prompts[row["sequence_id"]]
        greedy = {}
        for layers in ("full", "ee:3"):
            view = dd.prompted_view(model, layers)
            with torch.no_grad():
                first = view(torch.tensor([prompt]), use_cache=True)
                logits = [first.logits[0, -1:]]
                if len(answer) > 1:
                    logits.append(view(torch.tensor([answer[:-1]]), **{cache_name(): cache_of(first)}).logits[0])
            greedy[layers] = torch.cat(logits).argmax(-1)
        assert row["agreement"] == pytest.approx((greedy["full"] == greedy["ee:3"]).float().mean().item())
    assert n_compared >= 10


def test_a_sweep_into_a_folder_with_rows_keeps_them(tmp_path, model, tokenizer, small_task):
    options = {"metrics": ("rouge_l", "agreement"), "out": tmp_path}
    run(model, tokenizer, small_task, routes=["full", "uls:4"], **options)
    added = run(model, tokenizer, small_task, routes=["ee:3"], **options)
    assert set(added["route"].to_pylist()) == {"ee:3"}
    table = pq.read_table(tmp_path / "rows.parquet")
    assert {(route, n) for route, n in zip(*np.unique(table["route"], return_counts=True), strict=True)} == {
        *(("full", 7), ("uls:4", 7), ("ee:3", 7))
    }
    assert set(dd.oracle(table, metric="agreement", n_bootstrap=0).routes) == {"full", "uls:4", "ee:3"}
    fewer = replace(small_task, examples=small_task.examples[:5])
    assert run(model, tokenizer, fewer, routes=["ee:3"], **options).num_rows == 5
    kept = pq.read_table(tmp_path / "rows.parquet").select(["route", "sequence_id", "answer_hash"]).to_pylist()
    assert sorted(map(str, kept)) == sorted(map(str, table.select(list(kept[0])).to_pylist()))


def test_a_search_is_not_judged_on_its_own_rows(model, tokenizer, small_task):
    family = RouteFamily("greedy", 6, (Route((0, 2, 4), 6, "greedy:3"),), {"prompts": list(prompt_hashes(small_task))[:2]})
    for measure in (sweep, similarity):
        with pytest.raises(InputError, match=r"2 of the 7 sequences .* were used to search the routes"):
            measure(model, tokenizer, task=small_task, routes=family.routes)
        with pytest.raises(InputError, match=r"2 of the 7 sequences .* were used to search the routes"):
            measure(model, tokenizer, task=small_task, routes=["uls:3", *family.routes])  # the same layers by another name
    rows = sweep(model, tokenizer, task=small_task, routes=family.routes, max_new_tokens=2, allow_searched_rows=True)
    assert rows.num_rows == 7


def test_items_may_be_run_by_several_in_any_order(tmp_path, model, tokenizer, small_task):
    options = {"task": small_task, "routes": ROUTES, "max_new_tokens": 4, "fidelity_tokens": 4, "batch_size": 3}
    whole = sweep(model, tokenizer, **options)
    mine, theirs = (Sweep.of(model, tokenizer, out=tmp_path, **options) for _ in range(2))
    assert list(mine.items()) == [0, 1, 2]
    theirs.run(2)
    assert mine.is_done(2) and not mine.is_done(0)
    ran: list[int] = []
    for item in share_work(mine.items(), tmp_path, mine.name, mine.is_done, lambda i: (ran.append(i), mine.run(i))[0]):
        assert mine.is_done(item)
    assert ran == [0, 1]
    assert scores(mine.collect()) == scores(theirs.collect()) == scores(whole)
