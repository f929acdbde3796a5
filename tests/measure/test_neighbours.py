"""What a sequence gets depends neither on its neighbours in a batch nor on the state of the process that measures it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depthdial as dd
from depthdial.control.rows import measure_rows
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import Bernoulli
from tests.conftest import WORDS, make_llama, make_task, make_tokenizer
from tests.tiny_controllers import card_for

# How a batch was run: nothing that a sequence got.
PLACE = {"batch_size", "batch_steps", "batch_decode_sec", "batch_prefill_sec", "step_sec", "decode_sec", "settings_hash"}
LENGTHS = (2, 27, 5, 31, 12, 27, 1)  # of a context of 32 tokens
DEPTHS = ("full", "uls:3", "rls:2@7")


def tiny_gpt2():
    """GPT-2 with learned positions, which end at token 32, and with dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        **{"vocab_size": len(WORDS) + 4, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32},
        **{"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    return GPT2LMHeadModel(config).eval()


def tiny_llama():
    model = make_llama(n_layers=4)
    model.config.max_position_embeddings = 32
    return model


def filling(lengths=LENGTHS):
    prompts = [" ".join(WORDS[(3 * i + k) % len(WORDS)] for k in range(n)) for i, n in enumerate(lengths)]
    return make_task(prompts, [f"{WORDS[i]} sat on the mat" for i in range(len(lengths))])


def alike(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in a.keys() - PLACE:
            if isinstance(a[name], float) and isinstance(b[name], float):
                assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-5), (name, a["sequence_id"], a["route"])
            else:
                assert a[name] == b[name], (name, a["sequence_id"], a["route"])


def swept(model, task, batch_size, **options):
    routes = [*DEPTHS, TokenDepth(Bernoulli((1.0, 0.5, 0.6, 0.5), seed=3), 4, name="chance")]
    options = {"routes": routes, "max_new_tokens": 9, "fidelity_tokens": 12, "keep_text": True, **options}
    return dd.sweep(model, make_tokenizer(), task=task, batch_size=batch_size, **options).to_pylist()


@pytest.mark.parametrize("make", [tiny_llama, pytest.param(tiny_gpt2, marks=pytest.mark.matrix)])
@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ("rouge_1", "rouge_2", "rouge_l", "nll", "kl", "agreement")},
        {"samples": 2, "metrics": ("rouge_l", "kl", "agreement")},
        {"prompt_depth": "route", "routes": DEPTHS},
    ],
)
def test_every_column_of_a_sweep_is_the_sequences_own(make, options):
    model, task = make(), filling()
    alone, together = (swept(model, task, n, **options) for n in (1, 7))
    alike(alone, together)
    for row in alone:
        room = 32 - row["prompt_tokens"]
        assert row["new_tokens"] == min(9, room) or row["finish_reason"] == "eos"
    assert {row["prompt_tokens"] for row in alone if row["new_tokens"] > 5} & set(LENGTHS)


def rotating_by_length(kind):
    """A Llama whose rotary frequencies change for a batch with a sequence of more than 16 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_llama(n_layers=4).config.to_dict()
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**config, "max_position_embeddings": 32, "rope_parameters": rope})).eval()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_long_neighbour_does_not_change_rotary_frequencies(kind):
    options = {"routes": ["full", "ee:2"], "metrics": ("nll", "kl", "rouge_l")}
    model, task = rotating_by_length(kind), filling((3, 27, 5, 20, 25))
    rows = {(r["route"], r["sequence_id"]): r for r in swept(model, task, 7, **options)}
    for example in reversed(task.examples):
        own = swept(model, replace(task, examples=(example,)), 1, **options)
        alike(own, [rows[r["route"], r["sequence_id"]] for r in own])


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(1, 31), min_size=7, max_size=7), most=st.integers(1, 40))
def test_unequal_prompts_of_any_lengths(lengths, most):
    model, task = tiny_gpt2(), filling(tuple(lengths))
    options = {"max_new_tokens": most, "fidelity_tokens": 6, "routes": ["full", "ee:2"], "metrics": ("rouge_l", "agreement")}
    alike(*(swept(model, task, n, **options) for n in (1, 7)))


def test_similarity_features_and_search_are_the_sequences_own():
    model, task, words = tiny_gpt2(), filling(), make_tokenizer()
    common = {"task": task, "routes": ["uls:3", "rls:2@7"], "fidelity_tokens": 9}
    alike(*(dd.similarity(model, words, batch_size=n, **common).to_pylist() for n in (1, 7)))
    routes = (Route((0, 1), 4, "ee:2"), Route((0, 1, 2, 3), 4, "full"))
    card = card_for(model, words, task, routes, response_tokens=9)
    found = [
        measure_rows(model, words, task, card, batch_size=n, out=None, identity=ModelIdentity.of(model)) for n in (1, 7)
    ]
    assert found[0].features == pytest.approx(found[1].features, abs=1e-4)
    alike(*(one.table.to_pylist() for one in found))
    kl = [
        dd.search_routes(model, words, task=task, answer_tokens=9, batch_size=n, min_layers=2).made_by["kl"] for n in (1, 7)
    ]
    assert kl[0] == pytest.approx(kl[1], abs=1e-5)


def test_a_layers_time_is_measured_behind_a_prompt_that_fills_the_context():
    family = dd.search_routes(
        tiny_gpt2(), make_tokenizer(), task=filling((31,)), answer_tokens=1, cost="ms", min_layers=3, metric="kl"
    )
    assert all(ms > 0 for ms in family.made_by["cost"]["by_layer"])


def test_fidelity_is_on_its_own_tokens_whatever_the_answers_length():
    model, task = make_llama(), filling((2, 5))
    options = {"task": task, "routes": ["full", "uls:4"], "metrics": ("kl", "agreement", "rouge_l"), "fidelity_tokens": 20}
    tables = {
        n: dd.sweep(model, make_tokenizer(), max_new_tokens=n, keep_text=True, **options).to_pylist() for n in (1, 5, 20, 30)
    }
    for n, rows in tables.items():
        for row, expected in zip(rows, tables[20], strict=True):
            assert (row["kl"], row["agreement"]) == (expected["kl"], expected["agreement"])
            assert row["new_tokens"] == min(expected["new_tokens"], n) or n > 20
            assert row["batch_steps"] <= n - 1
    # More than the default is taken as well, and samples are compared on as many.
    longer = dd.sweep(model, make_tokenizer(), **{**options, "fidelity_tokens": 100, "metrics": ("kl",)}).to_pylist()
    assert longer[2]["kl"] != tables[20][2]["kl"]
    drawn = [
        dd.sweep(model, make_tokenizer(), max_new_tokens=n, samples=2, **{**options, "metrics": ("kl",)})["kl"].to_pylist()
        for n in (1, 20)
    ]
    assert drawn[0] == drawn[1]


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.fixture
def mixed():
    """A model in training mode but for one of its layers."""
    model = tiny_gpt2().train()
    model.transformer.h[1].eval()
    return model


@pytest.mark.slow
def test_everything_is_measured_in_evaluation_mode_and_modes_stay(mixed):
    words, task, quiet = make_tokenizer(), filling((2, 5, 9)), tiny_gpt2()
    before = modes(mixed)
    assert len(set(before.values())) == 2
    calls = [
        lambda m: [
            {k: v for k, v in row.items() if k not in PLACE} for row in swept(m, task, 2, metrics=("kl", "rouge_l", "nll"))
        ],
        lambda m: dd.similarity(m, words, task=task, routes=["ee:2"], fidelity_tokens=4).to_pylist(),
        lambda m: dd.search_routes(m, words, task=task, answer_tokens=4, min_layers=2).made_by["kl"],
        lambda m: dd.search_routes(m, words, task=task, method="angular", min_layers=2).made_by["importance"],
    ]
    for call in calls:
        state = torch.get_rng_state()
        assert call(mixed) == call(quiet)
        assert torch.equal(torch.get_rng_state(), state)  # nor is anybody's chance used up
        assert modes(mixed) == before


def test_an_exception_leaves_the_modes_as_they_were(mixed, monkeypatch):
    before = modes(mixed)
    monkeypatch.setattr("depthdial.measure.scoring.rouge", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swept(mixed, filling((2,)), 1)
    assert modes(mixed) == before


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.device("meta"),
    ],
)
def test_what_the_caller_has_set_for_torch_changes_nothing(surroundings):
    model, task, words = tiny_llama(), filling((2, 27)), make_tokenizer()
    options = {"task": task, "routes": ["full", "ee:2", "rls:2@7"], "max_new_tokens": 6, "fidelity_tokens": 6}

    def measured():
        rows = dd.sweep(model, words, metrics=("rouge_l", "nll", "kl"), **options).to_pylist()
        near = dd.similarity(model, words, task=task, routes=["ee:2"], fidelity_tokens=6).to_pylist()
        return [[row[name] for name in row.keys() - PLACE] for row in (*rows, *near)]

    expected = measured()
    with surroundings():
        assert measured() == expected


@pytest.mark.slow
def test_threads_run_with_and_without_the_adapter_at_the_same_time(with_lora):
    adapted, words, task = with_lora(make_llama()), make_tokenizer(), filling((2, 5))
    options = {"task": task, "routes": ["full", "ee:3"], "metrics": ("rouge_l", "kl"), "keep_text": True}
    options |= {"max_new_tokens": 3, "fidelity_tokens": 3}

    def own():
        return dd.sweep(adapted, words, **options).to_pylist()

    def untouched():
        return dd.sweep(adapted, words, full_untouched=True, **options).to_pylist()

    alone = [[r[c] for c in r.keys() - PLACE] for one in (own(), untouched()) for r in one]
    assert own()[0]["answer"] != untouched()[0]["answer"]
    found, errors = {}, []
    meeting, lock, met = threading.Barrier(2, timeout=20), threading.Lock(), []

    def meet(*_):
        # Both are inside a forward pass, and each has chosen what it runs on, before either goes on.
        try:
            meeting.wait()
            with lock:
                met.append(threading.get_ident())
        except threading.BrokenBarrierError:
            pass  # the other has finished

    adapted.get_base_model().model.layers[0].register_forward_pre_hook(meet)

    def start(name, call):
        try:
            found[name] = call()
        except Exception as error:
            errors.append(error)
        finally:
            meeting.abort()

    threads = [threading.Thread(target=start, args=one) for one in (("own", own), ("untouched", untouched))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(met) > 8
    assert [[r[c] for c in r.keys() - PLACE] for one in ("own", "untouched") for r in found[one]] == alone
