"""What a run of `gpu.py` keeps: its settings, models and results, of which each is on the disk at once."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import depthdial as dd
from depthdial.engine.graphs import SWITCH
from depthdial.engine.session import Session
from depthdial.files import write_json
from depthdial.provenance import environment

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
_TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
_TINY |= {"num_key_value_heads": 2, "vocab_size": 96}


class OutOfTimeError(BaseException):
    """A part has had its time; no Exception, which what records a graph would take for its own."""


@dataclass
class Run:
    """One run: its settings, what it has found, and how much time is left."""

    out: Path
    device: torch.device
    is_tiny: bool
    model: str | None
    until: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: str, what: str, **found: Any) -> None:
        """A result, on the disk at once."""
        row = {"part": part, "what": what, **{name: _plain(value) for name, value in found.items()}}
        self.rows.append(row)
        with (self.out / "gpu.jsonl").open("a") as lines:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def steps(self) -> int:
        return 4 if self.is_tiny else 40

    @cached_property
    def small(self) -> Session:
        """SmolLM2: the file that was given, or random weights of its shape."""
        if self.model is not None:
            model, tokenizer = dd.load(self.model, dtype=self.dtype)
            return Session.of(model.to(self.device), tokenizer)
        return Session.of(self.random(SMOLLM2), NoTokenizer())

    def random(self, shape: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
        """A Llama with random weights, made on the device."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            **{"vocab_size": 32000, "max_position_embeddings": 4096, **shape, **(_TINY if self.is_tiny else {})}
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or self.dtype)
        try:
            with self.device:
                model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
        with torch.no_grad():
            for layer in list(model.model.layers)[1:-1:2]:
                for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                    weight.mul_(0.02)
        return model

    def prompts(self, session: Session, rows: int, tokens: int = 64) -> list[list[int]]:
        generator = torch.Generator().manual_seed(rows)
        return torch.randint(
            3, session.facts.vocabulary, (rows, 8 if self.is_tiny else tokens), generator=generator
        ).tolist()

    @property
    def bandwidth(self) -> float:
        """Bytes a second, as this run has measured."""
        found = [row["bytes_per_sec"] for row in self.rows if row["part"] == "machine" and "bytes_per_sec" in row]
        if not found:
            raise RuntimeError("the part machine has no result")
        return found[-1]


class NoTokenizer:
    """Of a random model, which no text is given to."""

    pad_token_id, eos_token_id, chat_template = 0, None, None


def resume(run: Run) -> set[str]:
    """Take over what a run before has finished of the same settings; the parts that it finished."""
    try:
        lines = [json.loads(line) for line in (run.out / "gpu.jsonl").read_text().splitlines() if line.endswith("}")]
    except OSError:
        return set()
    finished = {row["part"] for row in lines if row["what"] == "finished" and row["settings"] == settings_of(run)}
    run.rows = [row for row in lines if row["part"] in finished]
    (run.out / "gpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.rows))
    return finished


def settings_of(run: Run) -> list[Any]:
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    return [name, run.is_tiny, run.model, torch.__version__]


def run_part(run: Run, name: str, work: Callable[[Run], None], seconds: float) -> None:
    """Run a part for at most so many seconds."""
    started = time.monotonic()
    try:
        with _limited(seconds):
            work(run)
        run.add(name, "finished", settings=settings_of(run), sec=time.monotonic() - started)
    except OutOfTimeError:
        run.add(name, "out of time", sec=time.monotonic() - started)
    except Exception as error:
        traceback.print_exc()
        run.add(name, "failed", error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        os.environ.pop(SWITCH, None)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summarize(run: Run) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(run.out / "gpu.json", {"when": when, "settings": settings_of(run), **environment(), "rows": run.rows})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.5g}")
    return value


@contextmanager
def graphs(are_on: bool) -> Iterator[None]:
    os.environ[SWITCH] = str(int(are_on))
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
