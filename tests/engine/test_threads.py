"""Threads of OpenMP that a thread does not need any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNTED = """
import os, sys
import torch
from depthdial.engine.threads import _pause, give_back_threads

torch.set_num_threads(2)
give_back_threads()  # before any are there
n_threads = lambda: len(os.listdir("/proc/self/task"))
alone = n_threads()
numbers = torch.ones(1000, 1000)
assert float(numbers.mul(2).sum()) == 2e6
working = n_threads()
give_back_threads()
after = n_threads()
assert float(numbers.mul(2).sum()) == 2e6  # others are started
print("no GNU OpenMP" if _pause() is None else (working - alone, after - alone, n_threads() - alone))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_threads_of_a_parallel_loop_end_and_are_started_anew() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNTED], capture_output=True, text=True, timeout=120, check=True)
    if done.stdout.strip() == "no GNU OpenMP":
        pytest.skip("this build of PyTorch does not run on GNU's OpenMP")
    assert done.stdout.strip() == "(1, 0, 1)"
