"""transformers' continuous batching: a paged cache, requests that come and go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Answers, Prompt, Subject, timed

_PAGE_TOKENS = 64


class ContinuousBatching(HFPeer):
    name = "hf-continuous"
    what = "transformers continuous batching, a manager that stays"
    keeps_threads = True
    _manager: Any = None
    _room = (0, 0)  # tokens and rows

    def why_absent(self, subject: Subject) -> str | None:
        if hasattr(subject.model, "init_continuous_batching"):
            return None
        return "This transformers has no continuous batching: install a newer one."

    def made(self, subject: Subject) -> Any:
        return copy.deepcopy(subject.model)  # it switches the model's attention to a paged one

    def generate(self, prompts: Sequence[Prompt], new_tokens: int) -> Answers:
        ids = [list(prompt.ids) for prompt in prompts]
        manager = self._running(sum(map(len, ids)) + len(ids) * new_tokens, len(ids))

        def answer() -> dict[str, tuple[int, ...]]:
            names = manager.add_requests(inputs=ids, max_new_tokens=new_tokens)
            done: dict[str, tuple[int, ...]] = {}
            while len(done) < len(names):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("the thread of continuous batching ended")
                if result is not None and result.is_finished():
                    done[result.request_id] = tuple(result.generated_tokens)
            return {name: done[name] for name in names}

        found, seconds = timed(answer)
        return Answers(tuple(found.values()), seconds)

    def close(self) -> None:
        if self._manager is not None:
            self._manager.stop(block=True, timeout=5)
            self._manager = None

    def _running(self, n_tokens: int, rows: int) -> Any:
        """The manager, started once for requests of a size: `generate_batch` takes a second to start and stop one a call."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        if self._manager is None or n_tokens > self._room[0] or rows > self._room[1]:
            self.close()
            self._room = (2 * n_tokens, rows)
            config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
            room = ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=self._room[0] // _PAGE_TOKENS + 2 * rows + 2,
                allow_block_sharing=False,  # the rounds' prompts are new to everyone
            )
            self._manager = self.model.init_continuous_batching(generation_config=config, continuous_batching_config=room)
            self._manager.start()
        return self._manager
