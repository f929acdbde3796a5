"""docs/leaderboard.md, whose numbers and tables are the board's; its words are to be read again when they change."""

# ruff: noqa: E501 (sentences that are wrapped when they are written)

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from depthdial.files import read_json, write_text

from .entries import FP32, GATE_TOKENS, GATES, TIMES
from .tables import DIGITS, by_share, cell

POLICIES = "policies.json"


def write_page(folder: Path, path: Path) -> Path:
    """Write the page from the files of a folder."""
    d, t, pol = (read_json(folder / name, "board") for name in ("board.json", TIMES, POLICIES))
    return write_text(path, _wrapped(_page(d, t, pol)))


def _page(d: dict[str, Any], t: dict[str, Any], pol: dict[str, Any]) -> str:
    at = {(one["family"], one["batch"], one["share"]): one for one in d["at_equal_time"]}
    points = {one["config"]: one for one in d["points"]}

    def c(family: str, metric: str = "agreement") -> str:
        return cell(at[family, 1, 0.8][metric], metric.removesuffix("_shared"))

    def ov(family: str, metric: str = "agreement") -> str:
        mean, low, high = (f"{one:+.{DIGITS[metric]}f}" for one in at[family, 1, 0.8][f"{metric}_over_greedy"])
        return f"{mean} [{low}, {high}]"

    below = math.ceil(100 * max(at[name, 1, 0.8]["agreement"][0] for name in ("ee", "uls", "rls", "unified"))) / 100
    router = pol["pudding"]["by_layers"]["24"]
    twins = [
        one["step_ms"]["median"] for one in t["cells"] if (one["weights"], one["batch"], one["layers"]) == (FP32, 1, 24)
    ]
    return f"""# All methods at equal time

At 0.8 of the full model's time bfloat16 wins by far: it needs {points["bf16@30"]["time_1"]:.2f} of the time of a step with one row and {points["bf16@30"]["time_32"]:.2f} with 32, and agrees with
the full fp32 model on {c("bf16")} of the tokens. Among methods that drop layers in fp32 the elastic adapter wins at one depth for all prompts ({c("elastic")}; the KnapSpec-like
search {c("knapspec")}, greedy {c("greedy")}); a controller that sends prompts to all layers or to half of them and fewer has a higher agreement ({c("controller")}) at a higher KL and
gains no time with 32 rows; fixed rules stay below {below}, and a router that picks one of three searched sets by prompt adds nothing to greedy. Where less time is needed, layers go on top of bf16: it takes, on 24 layers, {points["bf16@24"]["time_1"]:.2f} of the time, and its agreement is
greedy's at that depth ({points["bf16@24"]["agreement"][0]:.3f}), while 8-bit weights are either slow (torchao, {points["int8-torchao@30"]["time_1"]:.1f} times the full time) or far from the model (torch, {points["int8-dynamic@30"]["agreement"][0]:.3f}).

![Agreement over measured time, a line for each family](../experiments/leaderboard/figures/leaderboard.png)

## How it was measured

SmolLM2-135M on two CPU cores. Quality: the first {d["rows"]} test rows of a 7,225-row random sample of Alpaca, prompts at full depth, greedy answers of
at most 32 tokens; agreement and KL against the full fp32 model on its own answers, ROUGE-L against the references. Time: a decoding
step behind prompts of 64 tokens, everything in turns in one process on a quiet machine; the full model takes {d["full_ms"]["1"]:.1f} ms with one row and
{d["full_ms"]["32"]:.1f} ms with 32. Brackets are 95% intervals of {d["draws"]:,} resamples of the rows.

"At 0.8 of the time" is a depth between the two measured ones next to that time, by a straight line between them. A dash: no
point of the family is that fast, or (the smaller model, whose tokens are others) the score is not defined. Searches saw 16 training
prompts of Alpaca; nothing was fitted on a test row.

    python experiments/leaderboard/run.py --data DATA

makes all of it ([README](../experiments/leaderboard/README.md)); a stopped run goes on, and `--adapter FOLDER` makes only the rows of another adapter anew.

## Agreement, one row

{by_share(d, 1, "agreement")}
## KL to the full model in nats, one row

{by_share(d, 1, "kl")}
## ROUGE-L, one row

{by_share(d, 1, "rouge_l")}
## Agreement, 32 rows

{by_share(d, 32, "agreement")}
Every configuration with its scores and milliseconds is in [table.md](../experiments/leaderboard/table.md).

## Findings

Differences are on the same rows, at 0.8 of the time and one row.

- **KnapSpec-like against greedy**: {ov("knapspec")} of agreement and {ov("knapspec", "kl")} nats of KL. It tried no route on the answers' logits and took
  14 passes over the calibration prompts. Its sets keep the first and the last layer, and are not nested.
- **Block influence** is {ov("block-influence")} of agreement from greedy, and {ov("block-influence", "kl")} nats; **angular distance** {ov("angular")}. One pass of either is enough for that.
- **The PuDDing-like router** is {ov("pudding")} from greedy. Its candidates were searched on Alpaca, Dolly and CNN/DailyMail; it was fitted on {pol["pudding"]["training_rows"]} training
  prompts of the three, and there its held-out picks of 24 layers agree on {router["agreement_of_picks_held_out"]:.3f} of the tokens, the best single set on {router["agreement_of_best_single"]:.3f}. With 32 rows whose prompts take
  three different routes a step also takes longer ({points["pudding@24"]["time_32"]:.2f} of the full time at 24 layers, one route {points["greedy@24"]["time_32"]:.2f}). It has no sets of 27 layers, so that at 0.9 of the time it stands on the line from 24 layers to all of them, which flatters it.
{_gates(points)}- **The elastic adapter** is {ov("elastic")} from greedy. Prompts and the full depth run without it here, as on a server that switches depth by request, so its
  numbers are not those of [training for depth](finetuning.md).
- **Random skipping** at 20 layers and 32 rows takes {points["rls@20"]["time_32"]:.2f} of the full time: each row has layers of its own, and a layer that any row needs is read.
- **The controller** was fitted on {pol["controller"]["training_rows"]} training prompts of Alpaca and picks all layers, 15 or 12, and hardly any depth between: at a budget of 80% of the
  layer-steps {pol["controller"]["picked"]["80%"]["full"]} of {d["rows"]} prompts run in full, {pol["controller"]["picked"]["80%"]["elastic@15"]} on 15 layers and {pol["controller"]["picked"]["80%"]["elastic@12"]} on 12. At 0.8 of the time its KL is {c("controller", "kl")}, the elastic adapter's at one depth {c("elastic", "kl")}. A choice takes
  {t["choosing"]["overhead_ms"]:.1f} ms. With 32 rows, those in full and those with the merged adapter are two batches, which read two copies of the weights: all its
  points take longer than the full model ({points["controller@60%"]["time_32"]:.2f} to {points["controller@90%"]["time_32"]:.2f} of its time).
- **Sharing looks better than a middle depth in agreement**, with any family: sending some requests to all layers and the others to 12 reaches {c("greedy", "agreement_shared")} with
  greedy's routes at 0.8 of the time, where one depth for all reaches {c("greedy")}, for agreement falls so fast with the first layers that the line from
  12 layers to all of them lies above every depth between. In KL the best mixture has {c("greedy", "kl_shared")} and one depth {c("greedy", "kl")}. That is also what the controller
  does, so the tables do not rank methods by such mixtures.
- **ROUGE-L tells little apart** with {d["rows"]} rows and answers of 32 tokens: the elastic adapter at 0.8 of the time has {c("elastic", "rouge_l")}, the full model {cell(points["full"]["rouge_l"], "rouge_l")}.
- **The smaller model** is larger: gemma-3-270m takes {points["gemma-3-270m@30"]["time_1"]:.1f} times the time with a ROUGE-L of {cell(points["gemma-3-270m@30"]["rouge_l"], "rouge_l")}.

## Not on the board

- No GPU, one small model. Three routes of 24 layers took {min(twins):.1f} to {max(twins):.1f} ms: times are good to some 5%. [Peers](peers.md) has whole requests, and
  larger models stand skipping better.
"""


def _gates(points: dict[str, Any]) -> str:
    """What the board says of token gates; nothing where they are not on it."""
    own = [one for one in points.values() if one["family"] == GATES.name]
    if not own:
        return ""
    most, least = own[0], own[-1]
    near = min(own, key=lambda one: abs(one["layers"] - 24))

    def told(one: dict[str, Any]) -> str:
        return f"{cell(one['agreement'], 'agreement')} and {cell(one['kl'], 'kl')} nats"

    return f"""- **Token gates** decide for every token and layer, by the hidden state; they were trained on {GATE_TOKENS:,} response tokens a budget, with the model
  frozen. At {near["layers"]:.1f} layers in the mean they have {told(near)}, one route of 24 layers for all tokens {told(points["greedy@24"])} (greedy) or
  {told(points["block-influence@24"])} (block influence). At {least["layers"]:.1f} layers they have {told(least)}, greedy's 15 layers {told(points["greedy@15"])}. From {least["layers"]:.1f} to {most["layers"]:.1f} layers a
  step takes {least["time_1"]:.2f} to {most["time_1"]:.2f} of the full time with one row and {least["time_32"]:.2f} to {most["time_32"]:.2f} with 32: a gate is asked at every layer, a token that skips
  one still leaves its key and value there, and a layer is read if any row runs it. In the [gates study](token_routing.md), with a fine-tuned model and
  five seeds, a static route is ahead of sampled gates too.
"""


def _wrapped(page: str) -> str:
    """Paragraphs and items in lines of at most 125 characters; tables, headings and commands as they are."""
    blocks = []
    for block in page.split("\n\n"):
        if block.startswith(("|", "#", "!", "    ")):
            blocks.append(block)
            continue
        items: list[str] = []
        for line in block.strip().split("\n"):
            if line.startswith(("- ", "|")) or not items:
                items.append(line)
            else:
                items[-1] += f" {line.strip()}"
        blocks.append("\n".join(item if item.startswith("|") else _filled(item) for item in items))
    return "\n\n".join(blocks).rstrip() + "\n"


def _filled(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 125, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
