"""A peer that runs in a process of its own: under another Python, or where it must not take longer than it may."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Answers, Peer, Prompt, Subject

ROOT = Path(__file__).parents[2]
_MOST_SEC = 3600.0


class PeerError(RuntimeError):
    """A peer that gave up, in a sentence."""


class Remote(Peer):
    """A peer of the roster behind `worker.py`; its time limit is for its preparation and the first run of each shape.

    Args:
        python: the interpreter; its environment needs what this project does, and the peer's own packages.
    """

    def __init__(self, peer: Peer, depths: Sequence[str], python: str = sys.executable) -> None:
        self.name, self.what, self.like, self.most_rows = peer.name, peer.what, peer.like, peer.most_rows
        self.has_layers, self.time_limit_sec = False, peer.time_limit_sec
        self._python, self._depths, self._process = python, list(depths), None
        self._shapes: set[int] = set()

    def why_absent(self, subject: Subject) -> str | None:
        self._start(subject)
        return self._ask({"do": "why_absent"}, _MOST_SEC)

    def prepare(self, subject: Subject) -> None:
        self._start(subject)
        self._ask({"do": "prepare"}, self.time_limit_sec or _MOST_SEC)

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        limit = _MOST_SEC if len(prompts) in self._shapes else self.time_limit_sec or _MOST_SEC
        self._shapes.add(len(prompts))
        asked = [{"text": prompt.text, "ids": prompt.ids} for prompt in prompts]
        found = self._ask({"do": "generate", "prompts": asked, "new_tokens": new_tokens}, limit)
        return Answers(tuple(map(tuple, found["tokens"])), found["seconds"], found["note"])

    def score(self, exam: Path) -> Any:
        return self._ask({"do": "score", "exam": str(exam)}, _MOST_SEC)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _start(self, subject: Subject) -> None:
        if self._process is not None:
            return
        about = {"name": subject.name, "depth": subject.depth, "folder": str(subject.folder), "threads": subject.threads}
        command = [self._python, "-m", "benchmarks.peers.worker", self.name, json.dumps(about | {"depths": self._depths})]
        try:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise PeerError(f"{self._python} does not start ({error.strerror}).") from error

    def _ask(self, request: dict[str, Any], limit_sec: float) -> Any:
        process: Any = self._process
        line, started = "", time.monotonic()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                if ready.select(limit_sec):
                    line = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self.close()
            is_late = time.monotonic() - started >= limit_sec
            raise PeerError(
                f"It took more than {limit_sec:.0f} s and was stopped."
                if is_late
                else f"Its process under {self._python} died."
            )
        told = json.loads(line)
        if "error" in told:
            raise PeerError(told["error"])
        return told["found"]
