"""One answer and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from depthdial.engine.logprobs import TokenLogprob
from depthdial.engine.sampling import FinishReason
from depthdial.engine.speculation import Speculation
from depthdial.routes import Route
from depthdial.views.tokens.depth import TokenDepth


@dataclass(frozen=True)
class Generation:
    """One answer and how it was made.

    Attributes:
        prompt: what was answered; of messages, the text that the chat template made of them.
        text: the answer without special tokens; `tokens` has them.
        route: the layers that ran for response tokens, `len(route)` of `route.n_layers`; a TokenDepth where each token had
            its own.
        finish_reason: `eos` (an end token), `stop` (a stop string, which is the end of the text as with transformers, or a
            stopping criterion) or `length`.
        prefill_sec, decode_sec: measured seconds of the batch that it was part of.
        batch_size: how many sequences that batch decoded together.
        predicted: why a controller took this route: the quality that it predicted of each, by name. None without one.
        predicted_steps: decoding steps that it predicted of each route's answer, by name. None without a controller.
        price: what it asked of a route for each unit of cost, in quality. None without a controller.
        layers_run: layers that ran for a token after the first, in the mean; None where a token-wise answer has no such.
        logprobs: one for each token, where `logprobs` asked for them.
        speculation: what was drafted and accepted; None but for the depth `lossless`.
        queue_sec: seconds that a request of an `Engine` waited for its row; 0 outside of one.

    Example:
        >>> dd.generate(model, tokenizer, "the cat", depth="uls:50%", max_new_tokens=4)[0].route.layers
        (0, 2, 4)
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    route: Route | TokenDepth
    finish_reason: FinishReason
    prefill_sec: float
    decode_sec: float
    batch_size: int
    predicted: Mapping[str, float] | None = None
    predicted_steps: Mapping[str, float] | None = None
    price: float | None = None
    layers_run: float | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    speculation: Speculation | None = None
    queue_sec: float = 0.0

    @property
    def new_tokens(self) -> int:
        return len(self.tokens)

    @property
    def tokens_per_sec(self) -> float:
        """Of decoding alone: the first token comes out of the prefill."""
        return (self.new_tokens - 1) / self.decode_sec if self.decode_sec > 0 else float("nan")
