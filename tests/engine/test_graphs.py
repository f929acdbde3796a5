"""Passes through graphs against passes layer by layer, on a stand-in for CUDA graphs: any mix, joining, leaving, growing."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine import graphs
from depthdial.engine.batch import RowBatch
from depthdial.engine.draft_length import PassTimes
from depthdial.engine.graphs import GraphedWalk, graphs_of, stepping, warm_up_graphs
from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.recording import recorder_for
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import GREEDY
from depthdial.engine.slabs import window_for
from depthdial.engine.speculation import Drafting
from depthdial.engine.walk import Prefix, Walk
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.snapshot import snapshot
from tests.conftest import make_llama
from tests.engine.recorded_ops import CpuRecorder
from tests.tiny import N_LAYERS, tiny

PROMPTS = [[1, 5, 9], [7], [1, 8, 8, 4, 6], [2, 9, 3, 3]]
FULL = Route(tuple(range(6)), 6)
NESTED = [FULL, Route((0, 1, 4, 5), 6), Route((0, 5), 6)]
ROUTES = [*NESTED, Route((1, 3, 5), 6), Route((4,), 6)]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture(autouse=True, scope="module")
def recorded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "recorder_for", lambda device: CpuRecorder() if device.type == "cpu" else recorder_for(device))
        yield


@pytest.fixture
def base():
    return snapshot(make_llama())


def prefilled(model, prompts=PROMPTS):
    with torch.no_grad():
        return prefill(model, *left_padded(prompts, 0, model.device))


def both(model, capacity_rows=4):
    """A batch through graphs, and one layer by layer."""
    return RowBatch(model, capacity_rows), RowBatch(model, capacity_rows, compile=False)


def join(batches, model, prompts, routes, keys):
    for batch in batches:
        batch.join(prefilled(model, prompts), routes, keys)


def step_both(batches, step=0):
    mine, theirs = batches
    assert mine.keys == theirs.keys
    device = next(iter(mine._slabs.values())).keys.device
    tokens = torch.tensor([(step + 3 * i) % 20 + 4 for i in range(len(mine))], device=device)
    torch.testing.assert_close(mine.step(tokens), theirs.step(tokens), rtol=1e-4, atol=1e-4)


def recorded_in(model, work):
    before = graphs_of(model).n_recorded
    work()
    assert graphs_of(model).why_not is None
    return graphs_of(model).n_recorded - before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "qwen3", "opt"])
def test_rows_of_unlike_routes_and_lengths_step_as_without_graphs(name, device):
    model = snapshot(copy.deepcopy(tiny(name)).to(device))
    batches = both(model)
    routes = [Route(tuple(range(N_LAYERS)), N_LAYERS), Route((1, 2), N_LAYERS), Route((0, N_LAYERS - 1), N_LAYERS)]
    join(batches, model, PROMPTS[:3], routes, "abc")
    for step in range(4):
        step_both(batches, step)
    for batch in batches:
        batch.leave("b")
    join(batches, model, PROMPTS[1:], routes, "def")
    for step in range(4):
        step_both(batches, step)
    assert graphs_of(model).why_not is None
    assert graphs_of(model).n_recorded > 6


@pytest.mark.parametrize("device", DEVICES)
def test_checks_of_drafts_and_a_warm_up_are_as_without_graphs(device):
    model = snapshot(make_llama().to(device))
    assert warm_up_graphs(model, NESTED, max_rows=2, max_tokens=100, n_tokens=(1, 3)) > 0
    batches = both(model)
    join(batches, model, PROMPTS[:2], NESTED[:2], "ab")
    tokens = torch.tensor([[4, 5, 6], [9, 9, 3]], device=device)
    found, expected = (batch.run(tokens) for batch in batches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    step_both(batches)
    assert graphs_of(model).why_not is None


@given(data=st.data())
def test_rows_may_join_and_leave_at_any_step(data):
    model = _shared()
    batches, waiting = both(model, data.draw(st.sampled_from([1, 4]), label="capacity")), list(range(len(PROMPTS)))
    for step in range(6):
        n_joining = data.draw(st.integers(0, len(waiting)), label="joining")
        if n_joining:
            joining, waiting = waiting[:n_joining], waiting[n_joining:]
            routes = [data.draw(st.sampled_from(ROUTES), label="route") for _ in joining]
            join(batches, model, [PROMPTS[i] for i in joining], routes, joining)
        keys = batches[0].keys
        leaving = data.draw(st.sets(st.sampled_from(keys)), label="leaving") if keys else ()
        for batch in batches:
            batch.leave(leaving)
        if len(batches[0]):
            step_both(batches, step)
    assert graphs_of(model).why_not is None


_models = []


def _shared():
    if not _models:
        _models.append(snapshot(make_llama()))
    return _models[0]


def test_rows_grow_past_a_window(base, monkeypatch):
    for module in (graphs, graphs.StepGraphs.__module__):
        monkeypatch.setattr(f"{module if isinstance(module, str) else module.__name__}.graph_window", window_for)
    batches = both(base, 2)
    join(batches, base, [[5] * 60, [7, 8]], [FULL, NESTED[1]], "ab")
    for step in range(8):
        step_both(batches, step)
    assert {window for _, window, _ in graphs_of(base)._fronts} == {64, 128}
    assert graphs_of(base).why_not is None


def test_what_rows_that_are_missing_write_is_seen_by_nobody():
    model = make_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 1.0  # of token 0, which they run
    base = snapshot(model)
    batches = both(base)
    join(batches, base, PROMPTS[:1] + PROMPTS[2:], NESTED, "acd")  # three rows run as four
    tokens = torch.tensor([[8, 9, 4]] * 3)
    for _ in range(2):
        found, expected = (batch.run(tokens) for batch in batches)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The places where they wrote, of a prompt of one token, whose second place is behind it.
    assert any(slab.whole[0][len(slab.members) :, :, :3].abs().sum() > 0 for slab in batches[0]._slabs.values())
    join(batches, base, PROMPTS[1:2], [FULL], "b")
    for step in range(4):
        step_both(batches, step)


def test_the_next_batch_has_the_slabs_of_the_last_and_records_nothing(base):
    def answer():
        batches = both(base)
        join(batches, base, PROMPTS, NESTED[:1] * 4, range(4))
        for step in range(3):
            step_both(batches, step)

    assert recorded_in(base, answer) == 3
    assert recorded_in(base, answer) == 0


def test_sessions_of_one_model_share_graphs_until_it_changes():
    model = make_llama()

    def answer():
        base = snapshot(model)  # as each call of `generate` makes one
        batches = both(base)
        join(batches, base, PROMPTS, NESTED[:1] * 4, range(4))
        before = graphs_of(base).n_recorded
        step_both(batches)
        return graphs_of(base), graphs_of(base).n_recorded - before

    first, n_first = answer()
    second, n_second = answer()
    assert (n_first, n_second) == (3, 0)
    assert first is second
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(2)  # in place, where graphs find it
    assert answer() == (first, 0)
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(model.model.layers[2].mlp.up_proj.weight * 0.5)
    third, n_third = answer()
    assert third is not first
    assert n_third == 3


def test_slabs_of_many_batches_at_once_are_not_all_kept(base):
    batches = [RowBatch(base) for _ in range(12)]
    for batch in batches:
        batch.join(prefilled(base, PROMPTS[:1]), [FULL], "a")
        batch.step(torch.tensor([4]))
    del batch
    batches.clear()
    assert len(graphs_of(base)._free) == len(graphs_of(base)._layers) == 8


def test_two_batches_in_turns_have_slabs_of_their_own(base):
    first, second = both(base), both(base)
    join(first, base, PROMPTS[:2], [FULL, FULL], "ab")
    join(second, base, PROMPTS[2:], [FULL, FULL], "cd")
    for step in range(4):
        step_both(first, step)
        step_both(second, step + 1)
    assert graphs_of(base).why_not is None


def test_fewer_rows_run_through_the_graphs_of_more(base):
    batches = both(base)
    join(batches, base, PROMPTS, [FULL] * 4, range(4))
    step_both(batches)

    def rest():
        for key in (2, 0, 3):
            for batch in batches:
                batch.leave([key])
            step_both(batches)

    assert recorded_in(base, rest) == 0


def test_a_warm_up_leaves_nothing_to_record_for_its_routes_nor_for_mixes_of_them(base):
    # For 1, 2 and 4 rows: a front, three routes, the five runs that they share, and a tail.
    assert warm_up_graphs(base, NESTED, max_rows=4, max_tokens=200) == 3 * (1 + 3 + 5 + 1)

    def answers():
        for routes in ([FULL], NESTED, [NESTED[2], NESTED[1]], [NESTED[0], NESTED[2]] * 2, [NESTED[1]] * 3):
            batches = both(base)
            join(batches, base, PROMPTS[: len(routes)], routes, range(len(routes)))
            step_both(batches)
            del batches  # a second batch beside it would have slabs of its own

    assert recorded_in(base, answers) == 0
    assert warm_up_graphs(base, NESTED, max_rows=4, max_tokens=200) == 0


def test_a_warm_up_records_narrow_windows_behind_wide_ones(base):
    batches = both(base)
    join(batches, base, [[5] * 100], [FULL], "a")
    warm_up_graphs(base, max_rows=1, max_tokens=600)
    assert {window for _, window, _ in graphs_of(base)._fronts} == {256, 512, 768}
    step_both(batches)


def test_random_routes_need_a_graph_a_layer_whatever_their_mix(base):
    def answers():
        for seed in range(4):
            routes = [Route.parse(f"rls:3@{seed}", 6).for_sequence(i) for i in range(4)]
            batches = both(base)
            join(batches, base, PROMPTS, routes, range(4))
            step_both(batches)
            del batches

    answers()
    assert all(len(layers) == 1 for _, layers, *_ in graphs_of(base)._layers)
    assert len(graphs_of(base)._layers) <= 6 * 3


def test_states_of_first_layers_are_kept_and_resumed(base):
    batches = both(base, 2)
    join(batches, base, PROMPTS[:2], [FULL, FULL], "ab")
    found = []
    for batch in batches:
        prefix = Prefix(2)
        for place in range(2):
            batch.run(torch.tensor([[4 + place], [9]]), ahead=place, layers=frozenset({0, 1, 4}), keep=prefix)
        found.append((batch.run(torch.tensor([[4, 5, 6], [9, 9, 3]]), resume=prefix), torch.cat(prefix.states, dim=1)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert graphs_of(base).why_not is None


def test_results_are_the_callers_to_keep(base):
    batch = RowBatch(base)
    batch.join(prefilled(base, PROMPTS[:1]), [FULL], "a")
    first = batch.step(torch.tensor([4]))
    kept = first.clone()
    batch.step(torch.tensor([9]))
    assert torch.equal(first, kept)


def test_a_batch_in_inference_mode_and_one_without_it(base):
    for mode in (True, False):
        with torch.inference_mode(mode):
            batches = both(base, 2)
            join(batches, base, PROMPTS[:2], [FULL, FULL], "ab")
            step_both(batches)
    assert graphs_of(base).why_not is None


def test_what_cannot_be_recorded_runs_without_graphs_which_is_said_once(base, caplog):
    norm = base.model.layers[2].mlp
    forward = type(norm).forward
    norm.__dict__["forward"] = lambda states: forward(norm, states) * float(states.sum() * 0 + 1)
    batches = both(base)
    join(batches, base, PROMPTS, [FULL] * 4, range(4))
    with caplog.at_level(logging.WARNING, logger="depthdial"):
        for step in range(3):
            step_both(batches, step)
    assert graphs_of(base).why_not.startswith("RuntimeError: operation not permitted")
    assert len([record for record in caplog.records if "without CUDA graphs" in record.message]) == 1


def test_graphs_with_other_results_are_found_out_before_they_are_used(base, monkeypatch):
    record = CpuRecorder.record

    def badly(self, work):
        graph, result = record(self, work)
        return graph, result * 1.01

    monkeypatch.setattr(CpuRecorder, "record", badly)
    batches = both(base)
    join(batches, base, PROMPTS, [FULL] * 4, range(4))
    step_both(batches)
    step_both(batches)
    assert "off by" in graphs_of(base).why_not


def test_graphs_can_be_switched_off(base, monkeypatch):
    assert isinstance(stepping(base), GraphedWalk)
    monkeypatch.setenv("DEPTHDIAL_GRAPHS", "0")
    assert isinstance(stepping(base), Walk)
    assert warm_up_graphs(base) == 0
    monkeypatch.setenv("DEPTHDIAL_GRAPHS", "yes")
    with pytest.raises(InputError, match="DEPTHDIAL_GRAPHS is 'yes'"):
        stepping(base)


def test_on_a_cpu_there_are_none(monkeypatch):
    monkeypatch.setattr(graphs, "recorder_for", recorder_for)
    model = snapshot(make_llama(seed=3))
    assert isinstance(stepping(model), Walk)
    assert warm_up_graphs(model) == 0


def test_the_model_of_the_user_stays_as_it_is():
    model = make_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = snapshot(model)
    batches = both(base)
    join(batches, base, PROMPTS, NESTED[:1] * 4, range(4))
    step_both(batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("route", ["0-2,5", "1,4"])
def test_drafted_answers_are_those_without_graphs_and_recording_is_no_time_of_theirs(base, route, monkeypatch):
    ready, drafting = prefilled(base), Drafting(Route.parse(route, 6), draft_tokens=2)

    def answers(drafting=None):
        sampler = Sampler.from_draws(GREEDY, None, (), len(PROMPTS), 12)
        return decode_tokens(base, FULL, ready, sampler, max_new_tokens=12, pad_token_id=0, drafting=drafting)

    monkeypatch.setenv("DEPTHDIAL_GRAPHS", "0")
    expected = answers()
    monkeypatch.setenv("DEPTHDIAL_GRAPHS", "1")
    noted = []
    monkeypatch.setattr(PassTimes, "note", lambda self, kind, rows, sec, tokens=1: noted.append(kind))
    assert answers(drafting) == expected
    assert sum(drafting.counts[0].drafted) > 0
    n_first = noted.count("check")
    noted.clear()
    assert answers(drafting) == expected
    assert noted.count("check") == noted.count("draft") > n_first  # some of which have recorded
    assert graphs_of(base).why_not is None
