"""Run by the tests in a process of its own: vLLM answers prompts greedily. Reads a JSON object, and writes one."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(**given["options"])
    sampling = SamplingParams(temperature=0, max_tokens=given["n_tokens"], ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in given["prompts"]]
    rounds = [
        [list(output.outputs[0].token_ids) for output in llm.generate(prompts, sampling, use_tqdm=False)]
        for _ in range(given.get("rounds", 1))
    ]
    Path(sys.argv[2]).write_text(json.dumps({"rounds": rounds}), encoding="utf-8")


if __name__ == "__main__":
    main()
