"""transformers' `generate` with a static cache, as it is and with its decoding step compiled."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Subject
from depthdial.views.snapshot import snapshot

# Keys are held for as many tokens as a multiple of this, so that rounds of other prompts compile nothing anew.
_ROOM_TOKENS = 256


class Static(HFPeer):
    name = "hf-static"
    what = "transformers generate, static cache"

    def made(self, subject: Subject) -> Any:
        return snapshot(subject.model)  # compiling leaves traces on the model

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        room = -(-(n_prompt + new_tokens) // _ROOM_TOKENS) * _ROOM_TOKENS
        return {"cache_implementation": "static", "cache_config": {"max_cache_len": room}, "disable_compile": True}


class Compiled(Static):
    name = "hf-compiled"
    what = "transformers generate, static cache, torch.compile"
    has_layers = False
    time_limit_sec = 300.0

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        from transformers import CompileConfig

        # transformers compiles on no processor unless it is told to; CUDA's graphs ("reduce-overhead") are of no use there.
        compiling = CompileConfig(mode="default", fullgraph=False)
        compiling._compile_all_devices = True
        return {**super().options(n_prompt, new_tokens), "disable_compile": False, "compile_config": compiling}
