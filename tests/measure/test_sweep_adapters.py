"""Sweeps of a model with an adapter: its routes run with it, and the reference is the untouched full model."""

from __future__ import annotations

import copy

import pyarrow as pa
import pytest
import torch

import depthdial as dd
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.hf.untouched import has_adapters_on, untouched
from depthdial.measure.sweep import sweep
from depthdial.routes import Route
from depthdial.rows.store import UnitStore

ROUTES = ["full", "ee:3", "rls:3@5"]
MEASURED = {"batch_decode_sec", "batch_prefill_sec", "step_sec", "decode_sec"}


def run(model, tokenizer, task, **options):
    return sweep(
        model,
        tokenizer,
        task=task,
        **{"routes": ROUTES, "max_new_tokens": 6, "fidelity_tokens": 6, "batch_size": 3, **options},
    )


def scores(table: pa.Table, without: frozenset[str] = frozenset()) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MEASURED | without} for row in table.to_pylist()]


@pytest.fixture
def bare(model):
    """The base without the adapter that a test puts on `model`, its weights frozen as PEFT freezes them."""
    return copy.deepcopy(model).requires_grad_(False)


@pytest.fixture
def adapted(bare, model, with_lora):
    return with_lora(model)


def predictions(model, prompt: list[int], answer: list[int], layers: str) -> torch.Tensor:
    """Log-probabilities of a model that predict `answer`, (n_tokens, vocabulary); the prompt runs every layer."""
    with torch.no_grad():
        shallow = dd.prompted_view(model, layers)
        first = shallow(torch.tensor([prompt]), use_cache=True)
        logits = [first.logits[:, -1:]]
        if len(answer) > 1:
            logits.append(shallow(torch.tensor([answer[:-1]]), **{cache_name(): cache_of(first)}).logits)
    return torch.cat(logits, dim=1)[0].log_softmax(-1)


def test_kl_is_from_the_bare_full_model_to_the_adapted_route(bare, adapted, tokenizer, small_task):
    rows = run(adapted, tokenizer, small_task, metrics=("kl", "agreement")).to_pylist()
    assert {row["model"] for row in rows} == {"LlamaForCausalLM + adapter"}
    texts = {example.id: example.instruction for example in small_task.examples}
    answers = dict(zip(texts, dd.generate(bare, tokenizer, list(texts.values()), max_new_tokens=6), strict=True))
    for row in rows:
        prompt, answer = tokenizer(texts[row["sequence_id"]])["input_ids"], list(answers[row["sequence_id"]].tokens)
        full = predictions(bare, prompt, answer, "full")
        route = predictions(adapted, prompt, answer, row["route_layers"])
        assert row["kl"] == pytest.approx((full.exp() * (full - route)).sum(-1).mean().item(), abs=1e-4)
        assert row["agreement"] == pytest.approx((full.argmax(-1) == route.argmax(-1)).float().mean().item())
    assert min(row["kl"] for row in rows if row["route"] == "full") > 0.01


@pytest.mark.slow
def test_every_route_gives_its_own_answers(adapted, tokenizer, small_task):
    prompts = [example.instruction for example in small_task.examples]
    for metrics in (("rouge_l",), ("rouge_l", "kl")):
        rows = run(adapted, tokenizer, small_task, metrics=metrics, keep_text=True).to_pylist()
        for route in ("full", "ee:3"):
            own = [answer.text for answer in dd.generate(adapted, tokenizer, prompts, depth=route, max_new_tokens=6)]
            assert [row["answer"] for row in rows if row["route"] == route] == own


@pytest.mark.slow
def test_inside_untouched_the_rows_are_the_bare_models(bare, adapted, tokenizer, small_task):
    with untouched(adapted):
        rows = run(adapted, tokenizer, small_task)
    expected = run(bare, tokenizer, small_task)
    # The modules of an adapter that is off are there all the same: its weights are hashed and counted.
    there = frozenset({"weights_hash", "settings_hash", "decode_flops", "prompt_flops", "weight_bytes"})
    assert scores(rows, there) == scores(expected, there)
    assert scores(rows) != scores(run(adapted, tokenizer, small_task))


def test_an_adapted_model_is_as_it_was_afterwards(adapted, tokenizer, small_task, weights_of, assert_same):
    before = weights_of(adapted)
    run(adapted, tokenizer, small_task)
    assert_same(before, weights_of(adapted))


@pytest.mark.slow
def test_only_an_adapter_costs_a_second_pass_over_the_prompts(bare, adapted, tokenizer, small_task, monkeypatch):
    passes, real = [], Session.prefill
    monkeypatch.setattr(Session, "prefill", lambda self, *args: (passes.append(self), real(self, *args))[1])
    for model, metrics, n_passes in (
        (bare, ("rouge_l", "kl"), 3),  # one a batch
        (adapted, ("rouge_l", "nll"), 3),
        (adapted, ("rouge_l", "kl"), 6),
    ):
        passes.clear()
        run(model, tokenizer, small_task, metrics=metrics)
        assert len(passes) == n_passes


@pytest.mark.matrix
@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_killed_sweep_goes_on_with_the_same_reference(tmp_path, adapted, tokenizer, small_task, monkeypatch, killed_after):
    whole = run(adapted, tokenizer, small_task)
    written, real = [], UnitStore.write

    def dies(self, unit, rows):
        if len(written) == killed_after:
            raise KeyboardInterrupt
        real(self, unit, rows)
        written.append(unit)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(adapted, tokenizer, small_task, out=tmp_path)
    assert has_adapters_on(adapted)
    monkeypatch.setattr(UnitStore, "write", real)
    assert scores(run(adapted, tokenizer, small_task, out=tmp_path)) == scores(whole)
    with untouched(adapted), pytest.raises(InputError, match=r"another model \('LlamaForCausalLM . adapter' then"):
        run(adapted, tokenizer, small_task, out=tmp_path)


def test_samples_are_drawn_from_the_adapted_model(bare, adapted, tokenizer, small_task):
    options = {"samples": 2, "temperature": 1.5, "routes": ["full"]}
    with untouched(adapted):
        off = run(adapted, tokenizer, small_task, **options)["answer_hash"].to_pylist()
    assert off == run(bare, tokenizer, small_task, **options)["answer_hash"].to_pylist()
    assert off != run(adapted, tokenizer, small_task, **options)["answer_hash"].to_pylist()


@pytest.mark.slow
def test_each_route_outside_the_family_is_warned_of_and_none_that_a_search_tries(adapted, tokenizer, small_task):
    routes = (Route((0, 1, 2), 6, "own:3"),)
    attach_card(adapted, AdapterCard("elastic", "base", "0" * 64, "float32", 6, "full", routes))
    dd.search_routes(adapted, tokenizer, task=small_task, min_layers=4, answer_tokens=3)
    with pytest.warns(dd.RouteWarning) as caught:
        rows = run(adapted, tokenizer, small_task, metrics=("kl",))
    assert [str(w.message).split("'")[1] for w in caught] == ["full", "rls:3@5"]
    assert set(rows["model"].to_pylist()) == {"LlamaForCausalLM + elastic"}
    dd.similarity(adapted, tokenizer, task=small_task, routes=ROUTES, fidelity_tokens=3)


@pytest.mark.slow
def test_the_full_route_can_be_the_untouched_full_model(bare, adapted, tokenizer, small_task, weights_of, assert_same):
    before = weights_of(adapted)
    rows = run(adapted, tokenizer, small_task, full_untouched=True).to_pylist()
    assert_same(before, weights_of(adapted))
    plain = run(bare, tokenizer, small_task, routes=["full"]).to_pylist()
    full = [row for row in rows if row["route"] == "full"]
    same = ("sequence_id", "answer_hash", "rouge_l", "nll", "kl", "agreement")
    assert [[row[name] for name in same] for row in full] == [[row[name] for name in same] for row in plain]
    assert {(row["kl"], row["agreement"]) for row in full} == {(0.0, 1.0)}
    # Shallow routes run with the adapter behind the untouched model's prompt.
    texts = {example.id: example.instruction for example in small_task.examples}
    answers = dict(zip(texts, dd.generate(bare, tokenizer, list(texts.values()), max_new_tokens=6), strict=True))
    for row in (row for row in rows if row["route"] == "ee:3"):
        prompt, answer = tokenizer(texts[row["sequence_id"]])["input_ids"], list(answers[row["sequence_id"]].tokens)
        with torch.no_grad():
            first = dd.prompted_view(bare, "full")(torch.tensor([prompt]), use_cache=True)
            logits = [first.logits[:, -1:]]
            if len(answer) > 1:
                cache_of(first).layers = cache_of(first).layers[:3]
                shallow = dd.view(adapted, "ee:3")
                logits.append(shallow(torch.tensor([answer[:-1]]), **{cache_name(): cache_of(first)}).logits)
        route = torch.cat(logits, dim=1)[0].log_softmax(-1)
        whole = predictions(bare, prompt, answer, "full")
        assert row["kl"] == pytest.approx((whole.exp() * (whole - route)).sum(-1).mean().item(), abs=1e-4)
    apart = run(adapted, tokenizer, small_task, full_untouched=True, reference=bare).to_pylist()
    kept = ("sequence_id", "route", "answer_hash", "nll", "agreement")
    assert [[row[name] for name in kept] for row in apart] == [[row[name] for name in kept] for row in rows]
