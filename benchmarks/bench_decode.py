"""Decoding time against layers run, and a view against a physically pruned model; side by side in one run.

The promises: time per token is affine in the layers run, 15 of 30 layers take at most 0.62 of the full time, and a view
decodes within 2% of a model of the same layers that was saved and loaded. Batch 1, fp32, greedy, cached, prompt at full
depth. Machines are noisy: every round times each variant once, and ratios are taken within a round.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from typing import Any

import numpy as np
from common import arguments, in_turns, publish, ratio

import depthdial as dd
from depthdial.engine.decode import decode
from depthdial.engine.prefill import Prefill, left_padded, prefill
from depthdial.engine.session import Session

PROMPT = "Explain in three sentences why the sky is blue."


def main() -> None:
    options = arguments(__doc__, "decode.json", model="smollm2-135m", rounds=9, tokens=48)
    model, tokenizer = dd.load(options.model, dtype="float32")
    n_layers = model.config.num_hidden_layers
    message = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    session = Session.of(model, tokenizer)
    prompt = session.prefill_ids([ids])
    half = dd.Route.parse("uls:50%", n_layers)
    routes = [dd.Route.parse(f"uls:{max(1, n_layers * sixths // 6)}", n_layers) for sixths in (6, 5, 4, 3, 2, 1)]
    with tempfile.TemporaryDirectory() as folder:
        dd.view(model, half).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        pruned, _ = dd.load(folder, dtype="float32")
    pruned_prompt = _pruned_prefill(pruned, prompt, half)
    variants: list[tuple[str, Any, Any, Prefill]] = [(route.name, model, route, prompt) for route in routes]
    variants.append(("pruned", pruned, dd.Route.parse("full", len(half)), pruned_prompt))

    def step_sec(model: Any, route: Any, prompt: Prefill) -> float:
        done = decode(
            model, route, prompt, max_new_tokens=options.tokens, eos_token_ids=(), pad_token_id=session.pad_token_id
        )
        return done.decode_sec / done.steps

    times = in_turns({name: partial(step_sec, *how) for name, *how in variants}, options.rounds)
    layers = np.array([len(route) for route in routes], dtype=float)
    medians = np.array([statistics.median(times[route.name]) for route in routes])
    slope, intercept = np.polyfit(layers, medians, 1)
    residual = float(np.abs(slope * layers + intercept - medians).max() / medians.max())
    full_name = routes[0].name
    rows = [
        {
            "variant": name,
            "layers": len(route),
            "ms per token": 1e3 * statistics.median(times[name]),
            "of the full time": ratio(times[name], times[full_name]),
        }
        for name, _, route, _ in variants
    ]
    publish(
        f"Decoding {options.model}, batch 1, fp32",
        rows,
        options,
        affine={"ms_per_layer": 1e3 * slope, "ms_fixed": 1e3 * intercept, "largest_residual_of_full_time": residual},
        view_over_pruned=ratio(times[half.name], times["pruned"]),
        half_over_full=ratio(times[half.name], times[full_name]),
    )
    print(f"affine: {1e3 * intercept:.2f} ms + {1e3 * slope:.3f} ms per layer, largest residual {residual:.1%} of full time")
    print(f"{half.name} takes {ratio(times[half.name], times[full_name]):.3f} of the full time per token")
    print(f"a view takes {ratio(times[half.name], times['pruned']):.3f} of the pruned model's time")


def _pruned_prefill(pruned: Any, prompt: Prefill, route: Any) -> Prefill:
    """The pruned model on the same keys and values as the view has, so that both decode the same tokens."""
    shallow = prefill(pruned, *left_padded(prompt.input_ids.tolist(), 0, prompt.input_ids.device))
    return Prefill(
        prompt.input_ids, prompt.attention_mask, prompt.cache_for(route), prompt.logits, shallow.route, prompt.prefill_sec
    )


if __name__ == "__main__":
    main()
