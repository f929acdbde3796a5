"""Whether generated Python functions pass their tests: each in a process of its own, with limits of time, memory and files.

    python -m experiments.qwen.passing RUN OUT      (a sweep with --keep-text; OUT gets its rows and `passed`, no texts)

The limits stop endless loops and large lists. They are no sandbox: the code has the user's rights.
"""

from __future__ import annotations

import argparse
import re
import secrets
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.rows.store import load_rows
from experiments.qwen.prepare import PROMPTS, read_rows

TIMEOUT_SEC = 10.0
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
# Times are left out too: the machine was shared, and answers came on one route after the other.
_LEFT_OUT = ("answer", "prompt", "reference", "step_sec", "decode_sec", "batch_decode_sec", "batch_prefill_sec")
# Resource limits are set inside the process: a hook between fork and exec is not safe beside threads.
_CHILD = """
import resource, sys
code, done = sys.stdin.read().rsplit("\\0", 1)
for kind, most in (("CPU", 5), ("AS", 1 << 30), ("FSIZE", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
say = sys.stdout.write
exec(compile(code, "answer", "exec"), {"__name__": "answer"})
say(done)
"""


def code_of(answer: str) -> str:
    """The code of an answer: of its first fenced block, be it closed or not, or all of it."""
    found = _FENCED.search(answer)
    return answer if found is None else found[1]


def passes(answer: str, tests: list[str], *, timeout_sec: float = TIMEOUT_SEC) -> bool:
    """Whether the code of an answer runs and every one of its tests holds.

    >>> passes("def f(x):\\n    return x + 1", ["assert f(1) == 2"])
    True
    """
    # Code may end its process as if all were well: it does not know the word that is to be said behind the tests.
    done = secrets.token_hex(8)
    source = "\n".join([code_of(answer), *tests]) + "\0" + done
    with tempfile.TemporaryDirectory() as folder:
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-c", _CHILD],
                input=source.encode("utf-8", "replace"),
                capture_output=True,
                cwd=folder,
                env={},
                timeout=timeout_sec,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return child.returncode == 0 and child.stdout.endswith(done.encode())


def judge(rows: pa.Table) -> pa.Table:
    """The rows with a column `passed`, 1.0 or 0.0, and without texts and times."""
    tests = {row["id"]: row["tests"] for row in read_rows(PROMPTS)}
    ids = rows["sequence_id"].to_pylist()
    passed: list[float] | None = None
    if all(one in tests for one in ids):  # questions have none
        with ThreadPoolExecutor(2) as pool:
            answers = zip(ids, rows["answer"].to_pylist(), strict=True)
            passed = list(pool.map(lambda one: float(passes(one[1], tests[one[0]])), answers))
    for name in _LEFT_OUT:
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.nulls(len(rows), rows.schema.field(name).type))
    return rows if passed is None else rows.append_column("passed", pa.array(passed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    judged = judge(load_rows(options.run))
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(judged, options.out / "rows.parquet")


if __name__ == "__main__":
    main()
