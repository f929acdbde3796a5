"""transformers' assisted generation: drafts by a view, by an early exit, or by looking up the prompt."""

from __future__ import annotations

from typing import Any

import depthdial as dd
from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Subject


class _Assisted(HFPeer):
    most_rows = 1  # "assisted generate is only supported for batch_size = 1"


class AssistedByView(_Assisted):
    name = "hf-assisted-view"
    what = "transformers generate, assistant_model=dd.view(model, route)"

    def made(self, subject: Subject) -> Any:
        self._draft = dd.view(subject.model, subject.route())
        return subject.model

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        return {"assistant_model": self._draft}


class EarlyExit(_Assisted):
    name = "hf-early-exit"
    what = "transformers generate, assistant_early_exit= as many first layers as the route has"

    def made(self, subject: Subject) -> Any:
        self._exit = len(subject.route())
        return subject.model

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        return {"assistant_early_exit": self._exit}


class PromptLookup(_Assisted):
    name = "hf-prompt-lookup"
    what = "transformers generate, prompt_lookup_num_tokens=10"

    def options(self, n_prompt: int, new_tokens: int) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": 10}
