"""Run by the tests in a process of its own: vLLM answers prompts greedily, one job after the other.

    python answers.py JOBS.json ANSWERS.json

A job is an object with `options` (of `vllm.LLM`), `prompts` (token ids) and `n_tokens`, and may have `variables` of the
environment. An answer is an object with `tokens`, or with the `error` that vLLM stopped with; and with `preemptions` where
vLLM keeps statistics.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

# In this process, so that a job costs no imports; and nothing of the machine's cores is taken from other processes.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")
_OPTIONS = {
    **{"distributed_executor_backend": "uni", "skip_tokenizer_init": True, "enforce_eager": True, "seed": 0},
    **{"kv_cache_memory_bytes": 64 << 20, "max_model_len": 64, "max_num_seqs": 8},
}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.inputs import TokensPrompt

    before = {name: os.environ.get(name) for name in job.get("variables", {})}
    os.environ.update(job.get("variables", {}))
    llm = None
    try:
        llm = LLM(**{**_OPTIONS, **job["options"]})
        sampling = SamplingParams(temperature=0, max_tokens=job["n_tokens"], ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in job["prompts"]]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        counted = {} if job["options"].get("disable_log_stats", True) else {"preemptions": preemptions(llm)}
        return {"tokens": [list(output.outputs[0].token_ids) for output in outputs], **counted}
    except Exception as error:  # whatever vLLM makes of it: the test reads the text
        return {"error": str(error)}
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def preemptions(llm: Any) -> int:
    """How often vLLM took the cache from a request that had begun."""
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = {}
    for name, job in jobs.items():
        print(f"JOB {name}", flush=True)
        answers[name] = answer(job)
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
