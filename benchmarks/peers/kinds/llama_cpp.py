"""llama.cpp through llama-cpp-python: the same weights in 32 or 16 bits, and the built-in model's own 4-bit file."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.gguf_files import as_float, why_no_file
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, missing_package, timed

_ROOM_TOKENS = 256


class LlamaCpp(HFPeer):
    """Batches of sequences through llama.cpp's own batch interface, greedy.

    Attributes:
        kind: of the file: `F32`, `F16` or `native`, the one that the model came in.
    """

    has_layers = False

    def __init__(self, name: str, kind: str, like: str | None = None) -> None:
        self.name = self.scored_as = name
        self.kind, self.like = kind, like
        file = "the built-in model's own Q4_1 file" if kind == "native" else f"the same weights in a GGUF file of {kind}"
        self.what = f"llama.cpp (llama-cpp-python), {file}"

    def why_absent(self, subject: Subject) -> str | None:
        return missing_package("llama_cpp", "llama-cpp-python") or why_no_file(subject.name)

    def prepare(self, subject: Subject) -> None:
        import llama_cpp

        super().prepare(subject)
        self._cpp: Any = llama_cpp
        self._threads = subject.threads
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = _loaded(llama_cpp, as_float(subject.name, subject.folder, self.kind))
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}

    def made(self, subject: Subject) -> Any:
        return None  # nothing of transformers runs

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        ids = [prompt.ids for prompt in prompts]
        context = self._context(len(ids), max(map(len, ids)) + new_tokens)
        rows, seconds = timed(lambda: self._decode(context, ids, new_tokens))
        return Answers(tuple(map(tuple, rows)), seconds)

    def forced(self, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        ids, n = [*before, *tokens[:-1]], len(tokens)
        context = self._context(1, len(ids))
        self._clear(context)
        asked = range(len(ids) - n, len(ids))
        self._run(context, [(token, place, 0, place in asked) for place, token in enumerate(ids)])
        return torch.stack([torch.from_numpy(self._logits(context, place).copy()) for place in asked])

    def _decode(self, context: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        self._clear(context)
        entries, ends = [], []
        for row, ids in enumerate(prompts):
            entries += [(token, place, row, place == len(ids) - 1) for place, token in enumerate(ids)]
            ends.append(len(entries) - 1)
        self._run(context, entries)
        rows: list[list[int]] = [[int(self._logits(context, end).argmax())] for end in ends]
        for step in range(new_tokens - 1):
            self._run(context, [(tokens[-1], len(prompts[i]) + step, i, True) for i, tokens in enumerate(rows)])
            for i, tokens in enumerate(rows):
                tokens.append(int(self._logits(context, i).argmax()))
        return rows

    def _context(self, rows: int, length: int) -> Any:
        room = -(-length // _ROOM_TOKENS) * _ROOM_TOKENS
        if (rows, room) not in self._contexts:
            options = self._cpp.llama_context_default_params()
            options.n_ctx = options.n_batch = options.n_ubatch = rows * room
            options.n_ubatch = min(options.n_ubatch, 512)
            options.n_seq_max = rows
            options.n_threads = options.n_threads_batch = self._threads
            self._contexts[rows, room] = self._cpp.llama_init_from_model(self._model, options)
        return self._contexts[rows, room]

    def _clear(self, context: Any) -> None:
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(context), False)

    def _run(self, context: Any, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """One pass over (token, place, sequence, whether its logits are asked for)."""
        batch = self._cpp.llama_batch_init(len(entries), 0, 1)
        try:
            batch.n_tokens = len(entries)
            for i, (token, place, sequence, is_asked) in enumerate(entries):
                batch.token[i], batch.pos[i], batch.logits[i] = token, place, is_asked
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            status = self._cpp.llama_decode(context, batch)
            if status:
                raise RuntimeError(f"llama_decode gave {status}")
        finally:
            self._cpp.llama_batch_free(batch)

    def _logits(self, context: Any, place: int) -> np.ndarray:
        return np.ctypeslib.as_array(self._cpp.llama_get_logits_ith(context, place), (self._vocabulary,))


def _loaded(llama_cpp: Any, file: Path) -> Any:
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {file}")
    return model
