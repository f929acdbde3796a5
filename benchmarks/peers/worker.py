"""One peer in a process of its own, which may be of another environment: a line of JSON for each request and answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def serve(name: str, about: dict[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there is none: `{"do": "why_absent" | "prepare" | "generate" | "score", ..}`."""
    import torch

    from benchmarks.peers.peer import Prompt, Subject
    from benchmarks.peers.quality import Exam, score
    from benchmarks.peers.roster import roster

    subject = Subject(about["name"], about["depth"], Path(about["folder"]), about["threads"])
    torch.set_num_threads(subject.threads)
    peer = roster(about["depths"])[name]
    for line in requests:
        request = json.loads(line)
        found: Any = None
        try:
            if request["do"] == "why_absent":
                found = peer.why_absent(subject)
            elif request["do"] == "prepare":
                peer.prepare(subject)
            elif request["do"] == "generate":
                prompts = [Prompt(one["text"], tuple(one["ids"])) for one in request["prompts"]]
                found = dataclasses.asdict(peer.generate(prompts, request["new_tokens"]))
            else:
                found = score(peer, Exam.read(Path(request["exam"])))
            told = {"found": found}
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    # Whatever libraries print goes to standard error: standard output is for answers alone.
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, own)
