"""Numbers of rows and windows that parts are recorded for, and how a pass is cut into parts."""

from __future__ import annotations

from depthdial.engine.slabs import window_for
from depthdial.engine.step_graphs import BUCKETS, StepGraphs, bucket_for, graph_window
from depthdial.engine.walk import Prefix, Segment
from tests.engine.recorded_ops import CpuRecorder


def cut(found, *segments, keep=None):
    plan = [Segment(layers, slice(0, n), n) for layers, n in segments]
    return [layers for _, layers in found._split(plan, 7, keep)]


def test_buckets_hold_their_rows_and_at_most_twice_as_many():
    for rows in range(1, 257):
        assert rows <= bucket_for(rows) < max(2 * rows, 2)
        assert bucket_for(rows) in BUCKETS


def test_windows_hold_their_tokens_and_are_few():
    found = [graph_window(tokens) for tokens in range(1, 8193)]
    assert all(tokens <= window for tokens, window in enumerate(found, 1))
    assert all(window <= max(256, 1.5 * tokens) for tokens, window in enumerate(found, 1) if tokens > 512)
    assert len(set(found)) <= 12
    assert all(window == window_for(window) for window in found)


def test_all_layers_are_one_part_and_mixes_go_layer_by_layer():
    found = StepGraphs(CpuRecorder())
    assert cut(found, (tuple(range(7)), 3)) == [tuple(range(7))]
    assert cut(found, ((0, 1), 3), ((4,), 2)) == [(0,), (1,), (4,)]


def test_a_route_is_one_part_once_it_has_run_often():
    found = StepGraphs(CpuRecorder())
    cuts = [cut(found, ((0, 1, 4), 3)) for _ in range(65)]
    assert cuts == [[(0,), (1,), (4,)]] * 64 + [[(0, 1, 4)]]
    assert cut(found, ((0, 4), 3)) == [(0,), (4,)]


def test_mixes_go_through_runs_that_were_noted_the_longest_first():
    found = StepGraphs(CpuRecorder())
    found.note_runs([(0,), (0, 1), (2, 3), (4, 5, 6)])
    assert cut(found, ((0, 1, 2, 3, 4, 5), 3), ((6,), 1)) == [(0, 1), (2, 3), (4,), (5,), (6,)]


def test_parts_end_where_states_are_kept():
    found = StepGraphs(CpuRecorder())
    found.note_runs([(0, 1, 2), (0, 1)])
    assert cut(found, ((0, 1, 2, 5), 3), keep=Prefix(2)) == [(0, 1), (2,), (5,)]
    assert cut(found, (tuple(range(7)), 3), keep=Prefix(2)) == [(0, 1), (2, 3, 4, 5, 6)]
