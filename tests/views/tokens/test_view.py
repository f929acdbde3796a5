"""A token view writes what the dense reference writes, counts what it ran, and leaves its base alone."""

from __future__ import annotations

import copy
import functools
import threading
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from depthdial.engine.prefill import left_padded
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from depthdial.views.tokens.policy import Bernoulli, ConfidenceExit, StaticRoutes
from depthdial.views.tokens.view import TokenTrace, token_view
from depthdial.views.view import view
from tests.tiny import ARCHITECTURES, tiny
from tests.views.tokens.dense import KEY_VALUES, MAIN, N_LAYERS, REFUSED, Batch, Dense, Table, batch, drawn, error, in_chunks

BATCH, RAN = batch(), drawn(n_tokens=20)
PROMPTS = batch((9, 6, 8, 5, 9), seed=5)  # longer than the windows of `tiny`
N_NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None}
EVERYTHING = Table(torch.ones_like(RAN))
ROUTES = (Route((0, 2, 3, 5), 6), Route((1, 2, 4), 6), Route((0, 1, 2), 6), Route((3,), 6), Route(tuple(range(6)), 6))


@functools.cache
def base(name: str) -> PreTrainedModel:
    return tiny(name)


def prompt(given: Batch = PROMPTS) -> dict[str, torch.Tensor]:
    return {"input_ids": given.ids, "attention_mask": given.mask}


def written(model: Any, given: Batch = PROMPTS, **kwargs: Any) -> list[list[int]]:
    return model.generate(**prompt(given), **GREEDY, **kwargs)[:, given.ids.shape[1] :].tolist()


@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize("name", MAIN)
def test_generate_writes_what_the_dense_reference_writes(name: str, key_values: Any) -> None:
    model = base(name)
    dense, expected = Dense(model), []
    for ids, ran in zip(PROMPTS.rows(), RAN, strict=True):
        full_prompt = torch.cat([torch.ones(len(ids), N_LAYERS, dtype=torch.bool), ran[len(ids) :]])
        expected.append(dense.greedy(ids, full_prompt, key_values, N_NEW))
    routed = token_view(model, Table(RAN), key_values=key_values)
    assert written(routed) == expected
    alone = Batch(PROMPTS.ids[:1], PROMPTS.mask[:1])
    assert written(routed, alone) == expected[:1]
    swapped = Batch(PROMPTS.ids[[3, 1]], PROMPTS.mask[[3, 1]])
    by_key = token_view(model, Table(RAN), key_values=key_values, keys=[3, 1])
    assert written(by_key, swapped) == [expected[3], expected[1]]
    if name == "llama":
        assert written(routed, use_cache=True) == expected != written(token_view(model, EVERYTHING))
        dense_view = token_view(model, Table(RAN), key_values=key_values, execution="dense")
        assert written(dense_view) == expected


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED])
def test_everything_routed_is_the_untouched_model_bit_for_bit(name: str) -> None:
    model, routed = base(name), token_view(base(name), EVERYTHING, prompt_depth="route")
    with torch.no_grad():
        ours, theirs = routed(**BATCH.inputs(model), use_cache=False), model(**BATCH.inputs(model), use_cache=False)
    assert list(ours) == list(theirs)
    assert all(torch.equal(a, b) for a, b in zip(BATCH.rows(ours.logits), BATCH.rows(theirs.logits), strict=True))
    if name in MAIN:
        assert written(routed) == written(model)
        options = {"max_new_tokens": N_NEW, "do_sample": True, "temperature": 1.5}
        torch.manual_seed(4)
        expected = model.generate(**prompt(), **options)
        torch.manual_seed(4)
        assert torch.equal(routed.generate(**prompt(), **options), expected)


@pytest.mark.parametrize(("name", "key_values"), [("llama", "project"), ("gpt2", "drop"), ("gemma2", "copy")])
def test_static_routes_are_views_and_prompted_views(name: str, key_values: Any) -> None:
    model = base(name)
    for depth, shallow in (("route", view), ("full", prompted_view)):
        by_route = [written(shallow(model, route)) for route in ROUTES]
        routed = token_view(model, ROUTES, key_values=key_values, prompt_depth=depth)  # type: ignore[arg-type]
        assert written(routed) == [answers[row] for row, answers in enumerate(by_route)]
        one = token_view(model, ROUTES[1], key_values=key_values, prompt_depth=depth)  # type: ignore[arg-type]
        assert written(one) == by_route[1]
    with torch.no_grad():
        routed = token_view(model, StaticRoutes(ROUTES), key_values=key_values, prompt_depth="route")
        ours = BATCH.rows(routed(**BATCH.inputs(model)).logits)
        theirs = [BATCH.rows(view(model, route)(**BATCH.inputs(model)).logits)[i] for i, route in enumerate(ROUTES)]
    assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gpt_neox", "gemma2"])
def test_hidden_states_are_those_of_the_reference(name: str) -> None:
    model = base(name)
    dense = Dense(model)
    ran = RAN.clone()
    ran[..., 3] = False  # a layer that nobody runs, without having been seen to run before
    with torch.no_grad():
        ours = token_view(model, Table(ran), prompt_depth="route")(**BATCH.inputs(model), output_hidden_states=True)
        for row, (ids, runs) in enumerate(zip(BATCH.rows(), ran, strict=True)):
            theirs = dense(ids, runs[: len(ids)], output_hidden_states=True)
            assert len(ours.hidden_states) == len(theirs.hidden_states) == N_LAYERS + 1
            assert error([BATCH.rows(h)[row] for h in ours.hidden_states], [h[0] for h in theirs.hidden_states]) < 1e-5


def test_a_prompt_in_chunks_says_how_long_it_is() -> None:
    model, routed = base("qwen3"), token_view(base("qwen3"), Table(RAN))
    with torch.no_grad():
        whole = routed(**BATCH.inputs(model), prompt_columns=8).logits
        n_full = torch.tensor([int(mask[:8].sum()) for mask in BATCH.mask])
        runs = RAN | (torch.arange(20) < n_full[:, None])[..., None]
        dense = Dense(model)
        theirs = [dense(ids, ran[: len(ids)]).logits[0] for ids, ran in zip(BATCH.rows(), runs, strict=True)]
        assert error(BATCH.rows(whole), theirs) < 1e-5
        for prompt_columns, expected in ((8, whole), (0, token_view(model, Table(RAN), prompt_depth="route"))):
            cache, logits = None, []
            for first, last in ((0, 5), (5, 9), (9, 12)):
                given = BATCH.inputs(model, first, last)
                out = routed(**given, **{cache_name(): cache}, use_cache=True, prompt_columns=prompt_columns)
                cache = cache_of(out)
                logits.append(out.logits)
            expected = expected if isinstance(expected, torch.Tensor) else expected(**BATCH.inputs(model)).logits
            assert error(BATCH.rows(torch.cat(logits, 1)), BATCH.rows(expected)) < 1e-5


@pytest.mark.parametrize("depth", ["full", "route"])
def test_a_trace_counts_the_response_alone(depth: Any) -> None:
    model, trace = base("llama"), TokenTrace()
    routed = token_view(model, Table(RAN), prompt_depth=depth, trace=trace)
    written(routed)
    # The last token written is never run.
    ran = torch.stack([runs[len(ids) : len(ids) + N_NEW - 1] for ids, runs in zip(PROMPTS.rows(), RAN, strict=True)])
    assert torch.equal(trace.layers_run()[:, PROMPTS.ids.shape[1] :], ran.sum(-1))
    assert (trace.layers_run()[:, : PROMPTS.ids.shape[1]] == -1).all()
    assert torch.allclose(trace.mean_layers(), ran.sum(-1).double().mean(1))
    assert torch.equal(torch.cat([one.ran for one in trace.passes[1:]], 1), ran)
    trace.clear()
    with torch.no_grad():
        routed(**BATCH.inputs(model), prompt_columns=10)
    expected = [runs[:length][-2:].sum(-1).double().mean() for runs, length in zip(RAN, BATCH.mask.sum(1), strict=True)]
    assert torch.allclose(trace.mean_layers(), torch.stack(expected))
    trace.clear()
    with torch.no_grad():
        token_view(model, Table(RAN), prompt_depth=depth, trace=trace)(**BATCH.inputs(model))
    assert trace.mean_layers().isnan().all()  # a prompt and nothing else


def test_a_response_that_ends_early_is_padding_from_then_on() -> None:
    model, trace = base("llama"), TokenTrace()
    # Right-padded responses behind a left-padded prompt, as in training.
    ids = torch.cat([PROMPTS.ids, BATCH.ids[:, -4:]], 1)
    mask = torch.cat([PROMPTS.mask, (torch.arange(4) < torch.tensor([4, 2, 3, 1, 4])[:, None]).long()], 1)
    given = Batch(ids, mask)
    with torch.no_grad():
        ours = token_view(model, Table(RAN), trace=trace)(**given.inputs(model), prompt_columns=9, use_cache=False).logits
    n_prompt = PROMPTS.mask.sum(1)
    runs = RAN | (torch.arange(20) < n_prompt[:, None])[..., None]
    dense = Dense(model)
    with torch.no_grad():
        theirs = [dense(ids, ran[: len(ids)]).logits[0] for ids, ran in zip(given.rows(), runs, strict=True)]
    assert error(given.rows(ours), theirs) < 1e-5
    assert trace.passes[0].counted.sum(1).tolist() == [4, 2, 3, 1, 4]


def test_draws_follow_a_sequence_and_not_its_batch() -> None:
    model, keys = base("qwen3"), [7, 2**40, 3, 3, 11]
    policy = Bernoulli((0.5,) * N_LAYERS, seed=3)

    def ran(rows: list[int], ends: tuple[int, ...] = (12,), pad: int = 0) -> list[torch.Tensor]:
        trace = TokenTrace()
        shallow = token_view(model, policy, prompt_depth="route", keys=[keys[i] for i in rows], trace=trace)
        ids = torch.nn.functional.pad(BATCH.ids[rows], (pad, 0))
        given = Batch(ids, torch.nn.functional.pad(BATCH.mask[rows], (pad, 0)))
        with torch.no_grad():
            in_chunks(shallow, given, [end + pad for end in ends])
        return given.rows(torch.cat([one.ran for one in trace.passes], 1))

    whole = ran([0, 1, 2, 3, 4])
    assert 0.4 < torch.cat(whole).float().mean() < 0.6
    for rows, ends, pad in (([4, 2, 0], (12,), 0), ([1], (5, 6, 12), 0), ([3, 1], (1, 12), 3)):
        for i, runs in zip(rows, ran(rows, ends, pad), strict=True):
            assert torch.equal(runs, whole[i])
    assert torch.equal(whole[2][:7], whole[3][:7])  # one key, one fate
    assert not torch.equal(whole[0][:7], whole[1][:7])


@pytest.mark.parametrize("measure", ["margin", "saturation"])
def test_tokens_leave_once_confident_and_for_good(measure: Any) -> None:
    model, trace = base("llama"), TokenTrace()
    threshold = {"margin": 0.05, "saturation": 0.9}[measure]
    policy = ConfidenceExit(measure, threshold, first_layer=2)
    with torch.no_grad():
        token_view(model, policy, prompt_depth="route", trace=trace)(**BATCH.inputs(model))
        left = [0] * (N_LAYERS + 1)
        dense = Dense(model)
        for ids, ran in zip(BATCH.rows(), BATCH.rows(trace.passes[0].ran), strict=True):
            hidden = dense(ids, ran, output_hidden_states=True).hidden_states
            stays = torch.ones(len(ids), dtype=torch.bool)
            for layer in range(N_LAYERS):
                if layer >= 2:
                    if measure == "margin":
                        top = model.lm_head(model.model.norm(hidden[layer][0])).softmax(-1).sort(-1).values
                        confidence = top[:, -1] - top[:, -2]
                    else:
                        a, b = hidden[layer - 1][0], hidden[layer][0]
                        confidence = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
                    stays = stays & (confidence <= threshold)
                assert torch.equal(ran[:, layer], stays)
                left[layer] += int((~stays).sum())
        assert 0 < left[2] < left[5] < len(torch.cat(BATCH.rows()))
        never = token_view(model, ConfidenceExit(measure, 1), prompt_depth="route")
        assert torch.equal(*(m(**BATCH.inputs(model)).logits for m in (never, model)))


def test_a_view_works_on_adapters(model, with_lora) -> None:
    wrapped = with_lora(model)
    routed = token_view(wrapped, Table(RAN), key_values="drop", prompt_depth="route")
    ids = Batch(BATCH.ids % 28 + 2, BATCH.mask)
    dense = Dense(wrapped.get_base_model())
    with torch.no_grad():
        ours = ids.rows(routed(**ids.inputs(model)).logits)
        theirs = [dense(row, ran[: len(row)], "drop").logits[0] for row, ran in zip(ids.rows(), RAN, strict=True)]
        assert error(ours, theirs) < 1e-5
        plain = [Dense(model)(row, ran[: len(row)], "drop").logits[0] for row, ran in zip(ids.rows(), RAN, strict=True)]
    with wrapped.disable_adapter(), torch.no_grad():
        off = ids.rows(token_view(wrapped, Table(RAN), key_values="drop", prompt_depth="route")(**ids.inputs(model)).logits)
    assert error(ours, off) > 1e-3 and plain is not None


def test_a_view_of_a_view_routes_the_layers_that_remain() -> None:
    model = base("qwen3")
    shallow = view(model, (0, 2, 3, 5))
    some = token_view(shallow, lambda layer, hidden: torch.full(hidden.shape[:2], layer != 1), prompt_depth="route")
    with torch.no_grad():
        expected = view(model, (0, 3, 5))(**BATCH.inputs(model)).logits
        assert error(BATCH.rows(some(**BATCH.inputs(model)).logits), BATCH.rows(expected)) < 1e-5


def test_threads_share_a_view() -> None:
    model, routed = base("llama"), token_view(base("llama"), Table(RAN), key_values="copy")
    batches = [batch((9, 6, 8, 5, 9), seed=seed) for seed in range(4)]
    expected = [written(routed, given) for given in batches]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        got[i] = [written(routed, batches[i]) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == [[one, one] for one in expected]
    assert model is base("llama")


def test_a_deep_copy_routes_layers_of_its_own() -> None:
    model = tiny("llama")
    routed = token_view(model, Table(RAN))
    before = written(routed)
    other = copy.deepcopy(routed)
    assert written(other) == before
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()
    assert written(routed) == before != written(other)


def test_outputs_have_the_form_that_a_caller_asks_for() -> None:
    for name in ("llama", "gpt2"):
        model, routed = base(name), token_view(base(name), EVERYTHING, prompt_depth="route")
        inputs = {**BATCH.inputs(model), "labels": BATCH.ids}
        with torch.no_grad():
            for asked in ({}, {"use_cache": False}, {"return_dict": False}, {"use_cache": False, "return_dict": False}):
                ours, theirs = routed(**inputs, **asked), model(**inputs, **asked)
                assert type(ours) is type(theirs) and len(ours) == len(theirs)
                if isinstance(ours, dict):
                    assert list(ours) == list(theirs)
                assert torch.equal(ours[0], theirs[0])


def test_a_finished_sequence_may_pad_on() -> None:
    model = base("llama")
    expected = written(token_view(model, Table(RAN)))
    end = expected[0][2]
    out = token_view(model, Table(RAN)).generate(**prompt(), **{**GREEDY, "eos_token_id": end, "pad_token_id": 0})
    for row, tokens in zip(out[:, PROMPTS.ids.shape[1] :].tolist(), expected, strict=True):
        cut = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert row[: len(cut)] == cut[: len(row)]


def test_the_base_is_bit_identical_afterwards(weights_of, assert_same) -> None:
    for name in ("llama", "gpt2", "mpt"):
        model = tiny(name)
        before = weights_of(model)
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        with torch.no_grad():
            logits = model(**BATCH.inputs(model)).logits
        routed = token_view(model, ConfidenceExit("margin", 0.1), key_values="drop")
        written(routed)
        token_view(model, Bernoulli((0.5,) * 6), execution="dense")(**BATCH.inputs(model), prompt_columns=3)
        assert_same(before, weights_of(model))
        assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        with torch.no_grad():
            assert torch.equal(model(**BATCH.inputs(model)).logits, logits)


def test_prompts_of_one_token_and_lists_of_them() -> None:
    model = base("llama")
    ids, mask = left_padded([[5], [6, 7]], 0, "cpu")
    given = Batch(ids, mask)
    expected = []
    for row, runs in zip(given.rows(), RAN[:2], strict=True):
        full = torch.cat([torch.ones(len(row), N_LAYERS, dtype=torch.bool), runs[len(row) :]])
        expected.append(Dense(model).greedy(row, full, "project", N_NEW))
    assert written(token_view(model, Table(RAN)), given) == expected
