"""Token-wise execution against the full model: does skipping half of the layers for every token save time, and where not?

The promise: at 50% skipping and 16 sequences faster than the full model, for decoding and for prompts, and at most 10%
slower with everything routed. Every layer but the first and the last draws for every token whether it runs. Variants take
turns step by step, on random tokens; ratios are medians over steps, with a 95% interval of the median by resampling steps.

What skipping can save at best is what the layers' matrices save on fewer rows: on a CPU half of the rows take far more than
half of the time. So these are timed alone as well.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from common import arguments, publish, seconds

import depthdial as dd
from depthdial.hf.architectures import count_layers, decoder_stack, unwrap
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.views.tokens.cache import KEY_VALUES


def main() -> None:
    options = arguments(
        __doc__,
        "tokens.json",
        model="smollm2-135m",
        batch_sizes="1,4,16,32",
        prompt_tokens=64,
        long_prompt_tokens=128,
        steps=48,
        prompts=7,
        rate=0.5,
        threads=torch.get_num_threads(),
    )
    torch.set_num_threads(options.threads)
    model, _ = dd.load(options.model)
    table = []
    for size in map(int, options.batch_sizes.split(",")):
        variants = {"full": model, **_token_views(model, options.rate)}
        table += _compared("decoding", size, _steps(variants, size, options))
        table += _compared("prompt", size, _prompts(variants, size, options))
        table += _compared("matrices of a step", size, _matrices(model, size, options))
    publish(f"Token-wise execution of {options.model}, {options.rate:.0%} of the layers run for a token", table, options)


def _token_views(model: Any, rate: float) -> dict[str, Any]:
    """Everything routed, and chance at one rate, by what a token leaves in the cache of a layer that it skips.

    The first and the last layer always run; the others at the rate that makes the mean of all layers `rate`.
    """
    n_layers = count_layers(model)
    inner = (rate * n_layers - 2) / (n_layers - 2)
    half = dd.Bernoulli((1.0, *[inner] * (n_layers - 2), 1.0))
    everything = dd.token_view(model, _everything, prompt_depth="route")
    return {"everything routed": everything} | {
        kind: dd.token_view(model, half, key_values=kind, prompt_depth="route") for kind in KEY_VALUES
    }


def _everything(layer: int, hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def _tokens(model: Any, n_sequences: int, n_tokens: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (n_sequences, n_tokens), generator=draw)


@torch.no_grad()
def _steps(variants: dict[str, Any], size: int, options: Any) -> dict[str, list[float]]:
    """Seconds of every decoding step, behind one prompt for all."""
    ids = _tokens(variants["full"], size, options.prompt_tokens)
    mask = torch.ones_like(ids)
    caches = {name: cache_of(view(input_ids=ids, attention_mask=mask)) for name, view in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.steps + 2):
        mask = torch.cat([mask, mask[:, :1]], dim=1)
        for name, view in variants.items():
            took = seconds(functools.partial(_step, view, ids, mask, caches[name]))
            if number >= 2:  # the first steps pay for allocations
                times[name].append(took)
    return times


def _step(view: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> None:
    view(input_ids=ids[:, :1], attention_mask=mask, **{cache_name(): cache}, use_cache=True)


@torch.no_grad()
def _prompts(variants: dict[str, Any], size: int, options: Any) -> dict[str, list[float]]:
    """Seconds of a whole prompt's pass, of which only the last logits are made."""
    ids = _tokens(variants["full"], size, options.long_prompt_tokens)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.prompts + 1):
        for name, view in variants.items():
            took = seconds(lambda view=view: view(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1))
            if number:
                times[name].append(took)
    return times


@torch.no_grad()
def _matrices(model: Any, size: int, options: Any) -> dict[str, list[float]]:
    """Seconds of the layers' matrix products for one decoding step, on all rows and on as many as run in the mean."""
    layers = decoder_stack(unwrap(model)).layers
    weights = [module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    few = max(1, round(size * options.rate))
    inputs = {n: {w.shape[1]: torch.randn(n, w.shape[1]) for w in weights} for n in {size, few}}

    def run(rows: int) -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[rows][weight.shape[1]], weight)

    times: dict[str, list[float]] = {"full": [], "on the rows that run": []}
    for _ in range(options.prompts + 1):
        times["full"].append(seconds(functools.partial(run, size)))
        times["on the rows that run"].append(seconds(functools.partial(run, few)))
    return {name: taken[1:] for name, taken in times.items()}


def _compared(what: str, size: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    rng, full = np.random.default_rng(0), np.array(times["full"])
    rows = []
    for name, taken in times.items():
        ratios = np.array(taken) / full
        draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        rows.append(
            {
                "pass": what,
                "sequences": size,
                "variant": name,
                "median (ms)": 1000 * float(np.median(taken)),
                "over full": float(np.median(ratios)),
                "low": float(low),
                "high": float(high),
                "n": len(taken),
            }
        )
    return rows


if __name__ == "__main__":
    main()
