"""The recorder of a device."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.recording import recorder_for


def test_a_cpu_records_nothing():
    assert recorder_for(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_was_recorded_on_what_is_there_then():
    recorder = recorder_for(torch.device("cuda"))
    given = torch.zeros(4, device="cuda")

    def work(begin):
        untold = given + 100
        begin()
        return given * 2 + untold.numel()

    graph, result = recorder.record(work)
    for number in (1.0, 5.0):
        given.fill_(number)
        recorder.follow()
        graph.replay()
        assert result.tolist() == [2 * number + 4] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_work_that_asks_a_gpu_for_a_number_leaves_the_stream_as_it_was():
    recorder = recorder_for(torch.device("cuda"))
    given, before = torch.ones(4, device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        recorder.record(lambda begin: begin() or given * float(given.sum()))
    assert torch.cuda.current_stream() == before
    assert (given + 1).tolist() == [2.0] * 4
