"""Many requests at once get what each gets alone: from `dd.generate`, and from transformers' own `generate`."""

from __future__ import annotations

import copy
import doctest
import gc
import inspect
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch

import depthdial as dd
from depthdial.engine.batch import RowBatch
from depthdial.engine.engine import Engine
from depthdial.engine.handles import EngineRequest, RequestFailedError
from depthdial.engine.prefill import PrefillInParts
from depthdial.errors import InputError
from depthdial.routes import Route
from tests.conftest import make_llama
from tests.engine.test_layer_calls import counted
from tests.latencies import make_latency
from tests.tiny import shared
from tests.tiny_controllers import fit_tiny

PROMPTS = ["the cat", "a dog sat on the mat", "one two three", "it was", "the dog ran to the cat and sat", "a", "by two"]
DEPTHS = ["uls:3", "full", "rls:3@1", "0,3", 0.5, "rls:4@7", Route((1, 2, 4), 6)]
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 0}

pytestmark = pytest.mark.filterwarnings("ignore::depthdial.errors.RouteWarning")


def same(answers, expected):
    assert [(a.tokens, a.text, a.route, a.finish_reason, a.prompt) for a in answers] == [
        (e.tokens, e.text, e.route, e.finish_reason, e.prompt) for e in expected
    ]


def until(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


class Gate:
    """A stopping criterion that stops nothing: it holds its answer, and so the engine's thread, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.reached.set()
        assert self.opened.wait(20)
        return False


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_rows": 1},
        {"max_rows": 3},
        {"max_tokens": 50},
        {"chunk_tokens": 2},
        {"schedule": "by-route", "max_rows": 4},
        {"schedule": "by-route"},
        {"schedule": "layer-major", "max_rows": 4, "chunk_tokens": 5},
    ],
)
@pytest.mark.parametrize("options", [{}, {**SAMPLED, "seed": 4}])
def test_a_run_is_generate_row_by_row(model, tokenizer, settings, options):
    expected = dd.generate(model, tokenizer, PROMPTS * 2, depth=DEPTHS * 2, max_new_tokens=9, **options)
    with dd.Engine(model, tokenizer, **settings) as engine:
        for _ in range(2):
            same(engine.run(PROMPTS * 2, depth=DEPTHS * 2, max_new_tokens=9, **options), expected)


def test_full_depth_is_transformers_generate(model, tokenizer):
    with dd.Engine(model, tokenizer, max_rows=4) as engine:
        answers = engine.run(PROMPTS, max_new_tokens=8)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert answer.tokens == tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_moe_sparse", "falcon_alibi", "mpt"])
def test_any_architecture(name, tokenizer):
    model = copy.deepcopy(shared(name))
    model.generation_config.eos_token_id = None
    depths = ["0,2,5", "full", "1-4"] * 2
    expected = dd.generate(model, tokenizer, PROMPTS[:6], depth=depths, max_new_tokens=6)
    with dd.Engine(model, tokenizer, max_rows=4) as engine:
        same(engine.run(PROMPTS[:6], depth=depths, max_new_tokens=6), expected)


def test_what_cannot_be_run_in_rows_runs_on_transformers_cache(model, tokenizer, monkeypatch):
    monkeypatch.setattr("depthdial.engine.scheduler.in_rows", lambda _: False)
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=9)
    with dd.Engine(model, tokenizer, max_rows=4) as engine:
        same(engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=9), expected)


def test_frequencies_that_follow_the_longest_sequence_are_each_rows_own(tokenizer):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = make_llama()
    config = type(model.config)(**{**model.config.to_dict(), "rope_parameters": rope, "max_position_embeddings": 8})
    grown = type(model)(config).eval()
    grown.load_state_dict(model.state_dict())
    prompts = ["the cat", "a dog", "one two three four"]
    expected = [dd.generate(grown, tokenizer, one, depth="uls:3", max_new_tokens=4)[0] for one in prompts]
    with dd.Engine(grown, tokenizer) as engine:
        same(engine.run(prompts, depth="uls:3", max_new_tokens=4), expected)


def test_a_token_wise_depth_runs_beside_routes(model, tokenizer):
    policy = dd.Bernoulli([0.5] * 6, seed=3)
    depths = [policy, "uls:3", policy, "full"]
    expected = dd.generate(model, tokenizer, PROMPTS[:4], depth=depths, max_new_tokens=7)
    with dd.Engine(model, tokenizer) as engine:
        answers = engine.run(PROMPTS[:4], depth=depths, max_new_tokens=7)
    assert [a.tokens for a in answers] == [e.tokens for e in expected]
    assert [a.layers_run for a in answers] == [e.layers_run for e in expected]
    assert 0 < answers[0].layers_run < 6


@pytest.mark.slow
def test_a_controller_picks_the_routes_that_it_picks_in_generate(model, tokenizer, with_lora):
    adapted = with_lora(model)
    for one in (model, adapted):
        controller = fit_tiny(one, tokenizer)
        expected = dd.generate(one, tokenizer, PROMPTS, depth=controller, max_new_tokens=6)
        with dd.Engine(one, tokenizer, max_rows=3) as engine:
            answers = engine.run(PROMPTS, depth=controller, max_new_tokens=6)
            same(answers, expected)
            assert [a.price for a in answers] == [e.price for e in expected]
            with pytest.raises(InputError, match="prompt_depth"):
                engine.submit("the cat", depth=controller, prompt_depth="route")


@pytest.mark.slow
def test_a_long_prompt_runs_in_parts_for_a_controller_too(model, tokenizer, with_lora, monkeypatch):
    adapted = with_lora(model)
    controller = fit_tiny(adapted, tokenizer)
    prompts = ["the cat sat on a mat and " * 6, "a dog", "two dog sat"]
    expected = dd.generate(adapted, tokenizer, prompts, depth=controller, max_new_tokens=6)
    seen, advance = [], PrefillInParts.advance

    def ran(self, n_tokens):
        seen.append(n_tokens)
        return advance(self, n_tokens)

    monkeypatch.setattr(PrefillInParts, "advance", ran)
    with dd.Engine(adapted, tokenizer, chunk_tokens=8) as engine:
        same(engine.run(prompts, depth=controller, max_new_tokens=6), expected)
    assert seen.count(8) == 6  # of 42 tokens


def test_a_running_budget_is_settled_once_for_each_answer(model, tokenizer):
    controller = fit_tiny(model, tokenizer)
    alone, served = controller.online(4.5), controller.online(4.5)
    dd.generate(model, tokenizer, PROMPTS, depth=alone, max_new_tokens=6)
    with dd.Engine(model, tokenizer) as engine:
        engine.run(PROMPTS, depth=served, max_new_tokens=6)
    assert served.state.spent == pytest.approx(alone.state.spent)


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
@pytest.mark.parametrize("where", ["step", "join"])
def test_a_running_budget_counts_an_answer_once_that_starts_again(model, tokenizer, monkeypatch, where, prompt_depth):
    controller = fit_tiny(model, tokenizer, prompt_depth=prompt_depth)
    served, name, seen = controller.online(4.5), {"step": "step", "join": "_append"}[where], []
    original = getattr(RowBatch, name)

    def checked(self, *given):
        seen.append(len(self))
        if len(self) > 2:
            raise MemoryError
        return original(self, *given)

    monkeypatch.setattr(RowBatch, name, checked)
    with dd.Engine(model, tokenizer) as engine:
        answers = engine.run(PROMPTS, depth=served, prompt_depth=prompt_depth, max_new_tokens=6)
        until(lambda: engine.stats().running == 0)
    assert max(seen) > 2
    card, places = controller.card, {route: i for i, route in enumerate(controller.card.routes)}
    costs = [card.costs_of(np.full((1, len(places)), a.new_tokens - 1.0))[0, places[a.route]] for a in answers]
    assert served.state.n_done == len(PROMPTS) and served.state.spent == pytest.approx(sum(costs))
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        assert answer.price is not None
        alone = dd.generate(model, tokenizer, prompt, depth=answer.route, prompt_depth=prompt_depth, max_new_tokens=6)
        assert answer.tokens == alone[0].tokens


def test_an_adapter_is_on_for_routes_and_off_for_a_controllers_full_route(model, tokenizer, with_lora):
    adapted = with_lora(model)
    expected = dd.generate(adapted, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=6)
    bare = dd.generate(make_llama(), tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=6)
    assert [e.tokens for e in expected] != [b.tokens for b in bare]
    with dd.Engine(adapted, tokenizer) as engine:
        same(engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=6), expected)


def test_the_prompt_on_the_route_and_a_budget_of_routes(model, tokenizer):
    options = {"prompt_depth": "route", "max_new_tokens": 6}
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, **options)
    with dd.Engine(model, tokenizer, chunk_tokens=4) as engine:
        same(engine.run(PROMPTS, depth=DEPTHS, **options), expected)
        same(
            engine.run(PROMPTS, depth=0.4, routes=["0,5", "full"], max_new_tokens=3),
            dd.generate(model, tokenizer, PROMPTS, depth=0.4, routes=["0,5", "full"], max_new_tokens=3),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"presence_penalty": 1.0, "logit_bias": {5: 3.0}, "logprobs": 2},
        {"guidance_scale": 1.6},
        {"stop_strings": ["sat", "two"]},
        {"min_new_tokens": 3, "eos_token_id": list(range(3, 15))},
        {**SAMPLED, "seed": 1, "top_p": 0.8, "n": 3},
        {**SAMPLED, "seed": 1, "guidance_scale": 1.3, "num_return_sequences": 2},
        {"generation_config": {"do_sample": True, "temperature": 0.7}, "seed": 2},
        {"max_length": 12},
        {"prefill_chunk_size": 2},
    ],
)
def test_options_do_what_they_do_in_generate(model, tokenizer, options):
    given = {"max_new_tokens": 8, **options}
    if "max_length" in options:
        del given["max_new_tokens"]
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, **given)
    with dd.Engine(model, tokenizer, max_rows=5) as engine:
        answers = engine.run(PROMPTS, depth=DEPTHS, **given)
    same(answers, expected)
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.logprobs is None) == (other.logprobs is None)
        assert [one.token for one in answer.logprobs or ()] == [one.token for one in other.logprobs or ()]


def test_the_callers_own_processors_and_criteria(model, tokenizer):
    def never_five(ids, scores):
        return scores.index_fill(-1, torch.tensor([5]), -torch.inf)

    def at_four(ids, scores):
        return ids.shape[1] >= 6

    given = {"logits_processor": [never_five], "stopping_criteria": [at_four], "max_new_tokens": 8}
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, **given)
    with dd.Engine(model, tokenizer) as engine:
        same(engine.run(PROMPTS, depth=DEPTHS, **given), expected)


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(model, tokenizer):
    given = {"max_new_tokens": 10, "seed": 7, **SAMPLED, "depth": "uls:3"}
    with dd.Engine(model, tokenizer, max_rows=4) as engine:
        alone = engine.submit(PROMPTS[1], **given).result()
        others = [engine.submit(one, depth=d, max_new_tokens=9) for one, d in zip(PROMPTS, DEPTHS, strict=True)]
        crowded = engine.submit(PROMPTS[1], **given).result()
        assert alone.tokens == crowded.tokens == dd.generate(model, tokenizer, PROMPTS[1], **given)[0].tokens
        assert engine.submit(PROMPTS[1], **{**given, "seed": 8}).result().tokens != alone.tokens
        assert all(one.result().tokens for one in others)


def test_several_answers_are_those_of_a_repeated_prompt(model, tokenizer):
    given = {"max_new_tokens": 6, "seed": 3, **SAMPLED}
    expected = dd.generate(model, tokenizer, ["the cat"] * 4, **given)
    with dd.Engine(model, tokenizer, max_rows=3) as engine:
        request = engine.submit("the cat", n=4, **given)
        same(request.result(), expected)
        with pytest.raises(InputError, match="One answer can be streamed, not 4"):
            iter(request)
        assert engine.stats().finished == 1
        # Their prompt ran once for the rows that joined together.
        assert engine.stats().prompt_tokens == 8


def test_requests_join_while_others_run(model, tokenizer):
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=9)
    gate = Gate()
    with dd.Engine(model, tokenizer, max_rows=4) as engine:
        first = engine.submit(PROMPTS[0], depth=DEPTHS[0], max_new_tokens=9, stopping_criteria=[gate])
        gate.reached.wait(20)
        rest = [
            engine.submit(one, depth=depth, max_new_tokens=9)
            for one, depth in zip(PROMPTS[1:], [e.route for e in expected[1:]], strict=True)
        ]
        gate.opened.set()
        same([first.result(), *(one.result() for one in rest)], expected)


def test_pieces_make_up_the_text_and_come_one_by_one(model, tokenizer):
    with dd.Engine(model, tokenizer) as engine:
        for prompt, depth in zip(PROMPTS, DEPTHS, strict=True):
            gate, pieces = Gate(), []
            gate.opened.set()
            request = engine.submit(prompt, depth=depth, max_new_tokens=8)
            pieces = list(request)
            assert "".join(pieces) == request.result().text == "".join(request)
        gate = Gate()
        request = engine.submit("a dog", max_new_tokens=8, min_new_tokens=4, stopping_criteria=[gate])
        gate.reached.wait(20)
        assert not request.done
        with pytest.raises(TimeoutError, match=r"no result after 0\.01 s"):
            request.result(timeout=0.01)
        gate.opened.set()
        assert len(list(request)) >= 3 and request.done


def test_a_cancelled_request_leaves_at_the_next_step_and_harms_nobody(model, tokenizer):
    expected = dd.generate(model, tokenizer, PROMPTS[0], depth="uls:3", max_new_tokens=9)
    gate = Gate()
    with dd.Engine(model, tokenizer, max_rows=2) as engine:
        kept = engine.submit(PROMPTS[0], depth="uls:3", max_new_tokens=9)
        running = engine.submit(PROMPTS[1], max_new_tokens=100, eos_token_id=None, stopping_criteria=[gate])
        waiting = engine.submit(PROMPTS[2], max_new_tokens=100)
        gate.reached.wait(20)
        assert running.cancel() and waiting.cancel() and running.done and waiting.cancelled
        gate.opened.set()
        same([kept.result()], expected)
        for request in (running, waiting):
            with pytest.raises(InputError, match=r"was cancelled after \d+ tokens: submit it again"):
                request.result()
            with pytest.raises(CancelledError):
                request.result()
            assert not request.cancel()
            assert len(list(request)) <= 1
        assert not kept.cancel()
        until(lambda: engine.stats().running == engine.stats().waiting == 0)
        stats = engine.stats()
        assert (stats.finished, stats.cancelled, stats.failed, stats.kv_bytes) == (1, 2, 0, 0)


def test_an_error_is_its_own_requests_alone(model, tokenizer):
    def boom(ids, scores):
        raise ArithmeticError("boom")

    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=9)
    with dd.Engine(model, tokenizer) as engine:
        fine = [engine.submit(one, depth=e.route, max_new_tokens=9) for one, e in zip(PROMPTS, expected, strict=True)]
        bad = engine.submit("it was", max_new_tokens=9, logits_processor=[boom])
        worse = engine.submit("it was", max_new_tokens=9, stopping_criteria=[boom])
        several = engine.submit("it was", max_new_tokens=9, do_sample=True, n=5, logits_processor=[boom])
        same([one.result() for one in fine], expected)
        for request in (bad, worse, several):
            with pytest.raises(RequestFailedError, match=r"failed after \d tokens \(ArithmeticError: boom\)") as caught:
                request.result()
            assert isinstance(caught.value.__cause__, ArithmeticError)
        with pytest.raises(RequestFailedError):
            list(bad)
        assert engine.stats().failed == 3
        same(engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=9), expected)


def test_a_failing_pass_fails_its_rows_and_the_engine_goes_on(model, tokenizer, monkeypatch):
    step, failures = RowBatch.step, iter([True])

    def failing(self, tokens):
        if next(failures, False):
            raise RuntimeError("a kernel\nfailed")
        return step(self, tokens)

    monkeypatch.setattr(RowBatch, "step", failing)
    with dd.Engine(model, tokenizer) as engine:
        with pytest.raises(RequestFailedError, match=r"\(RuntimeError: a kernel failed\)"):
            engine.run(PROMPTS, max_new_tokens=9)
        until(lambda: engine.stats().running == 0)
        assert engine.stats().kv_bytes == 0
        same(engine.run(PROMPTS, max_new_tokens=9), dd.generate(model, tokenizer, PROMPTS, max_new_tokens=9))


@pytest.mark.parametrize("where", ["step", "join", "prefill"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")])
def test_out_of_memory_means_fewer_rows(model, tokenizer, monkeypatch, where, error):
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=9, seed=1, **SAMPLED)
    most, seen = 2, []

    def limited(n_rows):
        seen.append(n_rows)
        if n_rows > most:
            raise error

    if where == "prefill":
        advance = PrefillInParts.advance

        def checked(self, n_tokens):
            limited(len(self._parts.ids))
            return advance(self, n_tokens)

        monkeypatch.setattr(PrefillInParts, "advance", checked)
    elif where == "join":
        append = RowBatch._append

        def checked(self, layer, *rest):
            if layer == 3:  # some layers have their rows already
                limited(len(self))
            return append(self, layer, *rest)

        monkeypatch.setattr(RowBatch, "_append", checked)
    else:
        step = RowBatch.step

        def checked(self, tokens):
            limited(len(tokens))
            return step(self, tokens)

        monkeypatch.setattr(RowBatch, "step", checked)
    with dd.Engine(model, tokenizer) as engine:
        same(engine.run(PROMPTS, depth=[e.route for e in expected], max_new_tokens=9, seed=1, **SAMPLED), expected)
        assert max(seen) > most and engine.stats().max_rows < 32
        until(lambda: engine.stats().kv_bytes == 0)
        assert engine.stats().failed == 0


def test_what_memory_does_not_hold_alone_fails_alone(model, tokenizer, monkeypatch):
    advance = PrefillInParts.advance

    def checked(self, n_tokens):
        if self._parts.ids.shape[1] > 9:
            raise MemoryError
        return advance(self, n_tokens)

    monkeypatch.setattr(PrefillInParts, "advance", checked)
    with dd.Engine(model, tokenizer) as engine:
        requests = [engine.submit(one, max_new_tokens=5) for one in [*PROMPTS, "the " * 20, *PROMPTS]]
        with pytest.raises(InputError, match="does not hold a prompt of 20 tokens and an answer of up to 5 even alone"):
            requests[len(PROMPTS)].result()
        del requests[len(PROMPTS)]
        expected = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=5)
        same([one.result() for one in requests], [*expected, *expected])
        for _ in range(5):
            engine.run(PROMPTS, max_new_tokens=5)
        assert engine.stats().max_rows == 32


def test_threads_may_submit_at_once(model, tokenizer):
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS[0], max_new_tokens=7)
    with dd.Engine(model, tokenizer, max_rows=6) as engine, ThreadPoolExecutor(8) as pool:
        asked = [*enumerate(PROMPTS)] * 6
        found = list(
            pool.map(lambda one: (one[0], engine.submit(one[1], depth=DEPTHS[0], max_new_tokens=7).result()), asked)
        )
        runs = list(pool.map(lambda _: engine.run(PROMPTS, depth=DEPTHS[0], max_new_tokens=7), range(4)))
        streamed = list(pool.map(lambda one: "".join(engine.submit(one, depth=DEPTHS[0], max_new_tokens=7)), PROMPTS))
    for place, answer in found:
        same([answer], [expected[place]])
    for answers in runs:
        same(answers, expected)
    assert streamed == [e.text for e in expected]


def test_skipped_layers_are_never_called(model, tokenizer):
    dd.view(model, "0,2,5")
    engine = dd.Engine(model, tokenizer)
    with counted(engine._scheduler._session.model) as seen, engine:
        engine.run(PROMPTS[:5], depth=["0,2,5", "0,2"] * 2 + [Route((2,), 6)], max_new_tokens=6, eos_token_id=None)
        stats = engine.stats()
    assert [seen.steps[i] for i in range(6)] == [20, 0, 25, 0, 0, 10]
    assert (stats.layer_calls_run, stats.layer_calls_skipped) == (5 * 3, 5 * 3)
    assert (stats.row_layers_run, stats.row_layers_skipped) == (55, 5 * 5 * 6 - 55)
    assert stats.freed_bytes > 0


def test_limits_are_kept(model, tokenizer, monkeypatch):
    step, rows, held = RowBatch.step, [], []

    def watched(self, tokens):
        rows.append(len(tokens))
        held.append(sum(self.lengths))
        return step(self, tokens)

    monkeypatch.setattr(RowBatch, "step", watched)
    with dd.Engine(model, tokenizer, max_rows=3) as engine:
        engine.run(PROMPTS * 2, depth=DEPTHS * 2, max_new_tokens=6)
    assert max(rows) == 3
    held.clear()
    with dd.Engine(model, tokenizer, max_tokens=30) as engine:
        engine.run(PROMPTS * 2, depth=DEPTHS * 2, max_new_tokens=6)
        with pytest.raises(InputError, match=r"prompt of 2 tokens with an answer of up to 40 may hold 41 tokens .* is 30"):
            engine.submit("the cat", max_new_tokens=40)
    assert 20 < max(held) <= 30


def test_others_go_on_while_a_long_prompt_runs_in_parts(model, tokenizer, monkeypatch):
    events, step, advance = [], RowBatch.step, PrefillInParts.advance

    def stepped(self, tokens):
        events.append("step")
        return step(self, tokens)

    def ran(self, n_tokens):
        events.append(n_tokens)
        return advance(self, n_tokens)

    monkeypatch.setattr(RowBatch, "step", stepped)
    monkeypatch.setattr(PrefillInParts, "advance", ran)
    long = "the cat sat on a mat and " * 8
    expected = dd.generate(model, tokenizer, long, depth="uls:3", max_new_tokens=6)
    gate = Gate()
    with dd.Engine(model, tokenizer, chunk_tokens=8) as engine:
        first = engine.submit("a dog", max_new_tokens=30, eos_token_id=None, stopping_criteria=[gate])
        gate.reached.wait(20)
        second = engine.submit(long, depth="uls:3", max_new_tokens=6)
        gate.opened.set()
        same([second.result()], expected)
        first.result()
    parts = [i for i, event in enumerate(events) if event == 8][1:]
    assert len(parts) == 7  # of 56 tokens
    assert all(events[i - 1] == "step" for i in parts[1:])


def test_an_interrupt_leaves_a_clean_engine(model, tokenizer, monkeypatch):
    with dd.Engine(model, tokenizer) as engine:
        with monkeypatch.context() as patch:

            def interrupt(self, timeout=None):
                raise KeyboardInterrupt

            patch.setattr(EngineRequest, "result", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.run(PROMPTS, max_new_tokens=100)
        until(lambda: engine.stats().running == engine.stats().waiting == 0)
        assert engine.stats().kv_bytes == 0 and engine.stats().cancelled == len(PROMPTS)
        same(engine.run(PROMPTS, max_new_tokens=5), dd.generate(model, tokenizer, PROMPTS, max_new_tokens=5))


def test_close_finishes_what_there_is_or_cancels_it(model, tokenizer):
    engine = dd.Engine(model, tokenizer, max_rows=2)
    requests = [engine.submit(one, max_new_tokens=20) for one in PROMPTS]
    engine.close()
    assert all(one.result().tokens for one in requests)
    assert not [one for one in threading.enumerate() if one.name == "depthdial-engine"]
    for call in (lambda: engine.submit("the cat"), lambda: engine.run("the cat")):
        with pytest.raises(InputError, match="The engine is closed"):
            call()
    engine.close()
    gate, other = Gate(), dd.Engine(model, tokenizer)
    request = other.submit("the cat", max_new_tokens=50, stopping_criteria=[gate])
    gate.reached.wait(20)
    threading.Timer(0.05, gate.opened.set).start()
    other.close(cancel=True)
    assert request.cancelled and other.stats().kv_bytes == 0
    with pytest.raises(ZeroDivisionError), dd.Engine(model, tokenizer) as third:
        request = third.submit("the cat", max_new_tokens=100, eos_token_id=None)
        raise ZeroDivisionError
    assert request.done


def test_an_engine_that_nobody_holds_ends_its_thread(model, tokenizer):
    assert dd.Engine(model, tokenizer).submit("the cat", max_new_tokens=30).result().tokens  # the request holds it
    engine = dd.Engine(model, tokenizer)
    engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=4)
    gone, own = weakref.ref(engine), weakref.ref(engine._scheduler)
    del engine
    gc.collect()
    until(lambda: gone() is None and own() is None)
    until(lambda: not [one for one in threading.enumerate() if one.name == "depthdial-engine"])


def test_the_model_is_bit_identical_afterwards(model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    with dd.Engine(model, tokenizer) as engine:
        engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=4)
    assert_same(before, weights_of(model))


def test_statistics(model, tokenizer):
    with dd.Engine(model, tokenizer) as engine:
        empty = engine.stats()
        assert (empty.tokens_per_sec, empty.ttft_p50_sec, empty.tpot_p95_sec, empty.kv_bytes) == (None, None, None, 0)
        answers = engine.run(PROMPTS, max_new_tokens=6, depth=DEPTHS)
        stats = engine.stats()
    assert (stats.finished, stats.running, stats.waiting, stats.cancelled, stats.failed) == (len(PROMPTS), 0, 0, 0, 0)
    assert stats.new_tokens == sum(a.new_tokens for a in answers)
    assert stats.prompt_tokens == sum(len(tokenizer(p)["input_ids"]) for p in PROMPTS)
    assert 0 < stats.ttft_p50_sec <= stats.ttft_p95_sec and 0 < stats.tpot_p50_sec <= stats.tpot_p95_sec
    assert stats.tokens_per_sec == pytest.approx(stats.new_tokens / stats.busy_sec)
    assert stats.steps == 5 and stats.max_rows == 32


def test_the_schedule_is_decided_by_a_latency_model(model, tokenizer, tmp_path):
    make_latency().save(tmp_path / "bench.json")
    expected = dd.generate(model, tokenizer, PROMPTS, depth=DEPTHS, max_new_tokens=5)
    for latency in (make_latency(), tmp_path / "bench.json", str(tmp_path)):
        with dd.Engine(model, tokenizer, max_rows=3, latency=latency) as engine:
            same(engine.run(PROMPTS, depth=DEPTHS, max_new_tokens=5), expected)
            assert "by the latency model" in engine.stats().schedule_reason
    with pytest.raises(InputError, match="with 6 layers"):
        dd.Engine(make_llama(n_layers=3), tokenizer, latency=make_latency())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_rows": 0}, "Invalid max_rows 0"),
        ({"max_rows": 2.5}, "Invalid max_rows"),
        ({"max_tokens": 0}, "Invalid max_tokens 0"),
        ({"chunk_tokens": 0}, "Invalid chunk_tokens 0"),
        ({"schedule": "random"}, "Unknown schedule 'random'"),
        ({"latency": 3}, "The argument latency is a latency model or its file, not int"),
        ({"latency": "nowhere.json"}, "nowhere"),
    ],
)
def test_settings_that_cannot_be_used(model, tokenizer, settings, message):
    with pytest.raises(InputError, match=message):
        dd.Engine(model, tokenizer, **settings)


def test_what_is_no_model_and_what_is_no_setting(model, tokenizer):
    with pytest.raises(InputError, match="cannot generate"):
        dd.Engine(model.model, tokenizer)
    with pytest.raises(TypeError, match="no_such_option"):
        dd.Engine(model, tokenizer, no_such_option=1)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "A prompt is empty"),
        (None, {}, "either prompts or messages"),
        (7, {}, "A request has one prompt, a text, not int"),
        (["the cat", "a dog"], {}, "A request has one prompt, a text, not list: give several to run"),
        ("the " * 200, {}, "A prompt has 200 tokens but the model's context is 128"),
        ("the cat", {"max_new_tokens": 0}, "Invalid max_new_tokens 0"),
        ("the cat", {"max_new_tokens": "3"}, "Invalid max_new_tokens '3'"),
        ("the cat", {"temprature": 1.0}, "no argument 'temprature'"),
        ("the cat", {"temperature": 0.5}, "for sampled answers"),
        ("the cat", {"do_sample": True, "top_p": 2.0}, "top_p"),
        ("the cat", {"depth": "uls:9"}, "asks for 9 of 6 layers"),
        ("the cat", {"depth": Route((0,), 3)}, "for a model of 3 layers"),
        ("the cat", {"depth": ["full"]}, "one depth, not a list"),
        ("the cat", {"prompt_depth": "none"}, "Unknown prompt depth"),
        ("the cat", {"n": 3}, "for sampled answers"),
        ("the cat", {"on_text": print}, "on_text is of dd.generate, not of an engine: iterate"),
        ("the cat", {"streamer": print}, "streamer is of dd.generate"),
        ("the cat", {"batch_size": 3}, "give max_rows to dd.Engine"),
        ("the cat", {"logit_bias": {500: 1}}, "names token 500"),
        (None, {"messages": [{"role": "user", "content": "x"}]}, "no chat template"),
        ("the cat", {"messages": [{"role": "user", "content": "x"}]}, "either prompts or messages"),
    ],
)
def test_bad_requests_are_refused_and_harm_nobody(model, tokenizer, prompt, options, message):
    with dd.Engine(model, tokenizer) as engine:
        other = engine.submit("a dog", max_new_tokens=9)
        with pytest.raises(InputError, match=message):
            engine.submit(prompt, **options)
        same([other.result()], dd.generate(model, tokenizer, "a dog", max_new_tokens=9))
        assert engine.stats().finished == 1


def test_a_guided_answer_takes_two_rows(model, tokenizer):
    with dd.Engine(model, tokenizer, max_rows=1) as engine, pytest.raises(InputError, match="takes 2 rows"):
        engine.submit("the cat", guidance_scale=1.5)


def test_chats(model, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}the"
    chats = [[{"role": "user", "content": "the cat"}], [{"role": "user", "content": "a dog sat"}]]
    expected = dd.generate(model, tokenizer, messages=chats, depth="uls:3", max_new_tokens=5)
    with dd.Engine(model, tokenizer) as engine:
        same(engine.run(messages=chats, depth="uls:3", max_new_tokens=5), expected)
        same([engine.submit(messages=chats[0], depth="uls:3", max_new_tokens=5).result()], expected[:1])
        with pytest.raises(InputError, match="A request has one chat, not 2"):
            engine.submit(messages=chats)
        assert engine.stats().finished == 3


def test_random_rules_draw_by_the_number_of_the_request(model, tokenizer):
    rule = Route.parse("rls:3@1", 6)
    with dd.Engine(model, tokenizer) as engine:
        requests = [engine.submit("the cat", depth=rule, max_new_tokens=2) for _ in range(4)]
        assert [one.result().route for one in requests] == [rule.for_sequence(i) for i in range(4)]


@pytest.mark.parametrize("owner", [Engine.submit, Engine.run, Engine.stats, EngineRequest])
def test_examples(model, tokenizer, owner):
    with dd.Engine(model, tokenizer) as engine:
        names = {"dd": dd, "model": model, "tokenizer": tokenizer, "engine": engine}
        example = doctest.DocTestParser().get_doctest(inspect.getdoc(owner) or "", names, owner.__name__, None, 0)
        told: list[str] = []
        doctest.DocTestRunner().run(example, out=told.append)
    assert example.examples and not told, "".join(told)


def test_a_thread_that_ends_leaves_nobody_waiting(model, tokenizer, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def leave(ids, scores):
        sys.exit(3)

    engine = dd.Engine(model, tokenizer)
    request = engine.submit("the cat", stopping_criteria=[leave])
    with pytest.raises(RequestFailedError, match="thread has ended"):
        request.result(timeout=20)
    with pytest.raises(InputError, match="closed"):
        engine.submit("the cat")


def test_layers_with_room_for_unlike_numbers_of_tokens_run_together(model, tokenizer):
    """A shallow row with a long answer makes wider slabs than a deep one that joins it and stays when it has gone."""
    expected = dd.generate(model, tokenizer, "a dog", max_new_tokens=40, eos_token_id=None)[0]
    with dd.Engine(model, tokenizer, schedule="layer-major") as engine:
        shallow = engine.submit("the cat", depth="uls:50%", max_new_tokens=100, eos_token_id=None)
        shallow.events().wait()
        deep = engine.submit("a dog", max_new_tokens=40, eos_token_id=None)
        deep.events().wait()
        assert shallow.cancel()
        assert deep.result().tokens == expected.tokens
