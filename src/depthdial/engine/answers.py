"""One answer in the making: what was asked, the tokens so far, and the next one out of the model's logits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from depthdial.engine.depth import Asked, Assignment, Depth, Reason, RouteDepth
from depthdial.engine.generation import Generation
from depthdial.engine.handles import EngineRequest
from depthdial.engine.logprobs import TokenLogprob, read_logprobs
from depthdial.engine.options import Options
from depthdial.engine.processors import Row
from depthdial.engine.requests import Request
from depthdial.engine.row_sampler import RowSampler, next_tokens
from depthdial.engine.sampling import Chance, FinishReason
from depthdial.engine.speculation import Drafting, Speculation
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth


@dataclass(eq=False)
class Answer:
    """An answer from its request to its last token.

    Attributes:
        asked: the prompt's tokens, and how often it was asked before.
        handle: what the caller holds, which it is answer number `place` of.
        depth, about: decides about its layers, and what else it is asked.
        key: by which random rules draw.
        options: its own; `limit` is the most tokens that it may have.
        processors, criteria: the caller's.
        number: its turn among all answers of the engine.
        tokens: so far; the model has run the first `n_fed` of them. An answer whose row had to go keeps them, and they run
            again when it gets another one.
        route: once it is known; `drafting`: what drafts its tokens, if anything may; `speculation`: how that went.
        decided: what its depth has decided about it, where that is settled afterwards: such a depth is asked once.
        reason: why it is over; `error`: why it will not be.
    """

    asked: Request
    handle: EngineRequest
    place: int
    depth: Depth
    about: Asked
    options: Options
    limit: int
    processors: tuple[Any, ...] = ()
    criteria: tuple[Any, ...] = ()
    key: int = 0
    number: int = -1
    submitted_sec: float = 0.0
    admitted_sec: float = 0.0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    n_fed: int = 0
    route: Running | None = None
    why: Reason | None = None
    drafting: Drafting | None = None
    speculation: Speculation | None = None
    decided: Assignment | None = None
    reason: FinishReason | None = None
    error: Exception | None = None
    prefill_sec: float = 0.0
    batch_size: int = 1
    first_token_sec: float | None = None
    last_token_sec: float = 0.0
    sampler: RowSampler | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return self.asked.ids

    @property
    def is_guided(self) -> bool:
        return self.options.guidance_scale is not None

    @property
    def n_rows(self) -> int:
        """Rows that it takes: a guided answer also runs without its prompt."""
        return 2 if self.is_guided else 1

    @property
    def need_tokens(self) -> int:
        """Keys and values that it may come to hold, in tokens: all but its last token are run."""
        return len(self.ids) + self.limit - 1 + (self.limit if self.is_guided else 0)

    @property
    def is_over(self) -> bool:
        return self.reason is not None or self.error is not None or self.handle.done

    @property
    def next_input(self) -> int:
        """The token that the model runs next."""
        return self.tokens[self.n_fed]

    @property
    def wants_token(self) -> bool:
        """Whether the model has run all tokens, so that its logits give another one."""
        return self.n_fed == len(self.tokens)

    def set_key(self, key: int) -> None:
        """What random rules draw by; a route that no pass is needed for is known from then on."""
        self.key = key
        if isinstance(self.depth, RouteDepth):
            self.route = self.depth.route.for_sequence(key)

    def prepare_sampler(self, vocabulary: int, device: Any) -> RowSampler:
        """What chooses its tokens, made once.

        Raises:
            InputError: for a value that an option's processor does not take.
        """
        if self.sampler is None:
            seed = self.options.seed
            self.sampler = RowSampler.from_options(
                self.options,
                self.handle.tokenizer,
                Row(torch.tensor([self.ids], device=device), self.limit, vocabulary, self.options.ends),
                chance=None if seed is None else Chance.of_request(seed, self.ids, self.asked.repeat),
                processors=self.processors,
                criteria=self.criteria,
            )
        return self.sampler

    def take(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """The next token, which may be the last one."""
        assert self.sampler is not None
        self.last_token_sec = time.perf_counter()
        if self.first_token_sec is None:
            self.first_token_sec = self.last_token_sec
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        self.reason = self.sampler.ended(self.tokens)
        self.handle.add_token(self.place, token, logprob)

    def generation(self) -> Generation:
        """What its caller gets, once it is over."""
        route, n_steps = self.route, len(self.tokens) - 1
        assert route is not None and self.reason is not None and self.first_token_sec is not None
        return Generation(
            prompt=self.asked.prompt,
            text=self.handle.tokenizer.decode(self.tokens, skip_special_tokens=True),
            tokens=tuple(self.tokens),
            route=route,
            finish_reason=self.reason,
            queue_sec=self.admitted_sec - self.submitted_sec,
            prefill_sec=self.prefill_sec,
            decode_sec=self.last_token_sec - self.first_token_sec,
            batch_size=self.batch_size,
            layers_run=self._layers_run(n_steps),
            logprobs=None if self.options.logprobs is None else tuple(self.logprobs),
            speculation=self.speculation,
            **({} if self.why is None else vars(self.why)),
        )

    def _layers_run(self, n_steps: int) -> float | None:
        """For a token after the first, in the mean."""
        if isinstance(self.route, TokenDepth):
            return self.route.mean_layers([n_steps])[0]
        if self.speculation is not None and self.speculation.layers_run:
            return self.speculation.layers_run / n_steps
        return None if self.route is None else float(len(self.route))

    def starts_again(self) -> None:
        """It has no row any more; its tokens are kept."""
        self.n_fed = 0


def choose(answers: Sequence[Answer], logits: torch.Tensor) -> int:
    """The next token of each answer, together where that can be; an error in one of them is that one's own.

    Args:
        logits: (n_answers, vocabulary) in fp32, guided where the answer asks for it.

    Returns:
        How many tokens were chosen.
    """
    ready = []
    for row, answer in enumerate(answers):
        try:
            answer.prepare_sampler(logits.shape[-1], logits.device)
            ready.append(row)
        except Exception as error:
            answer.error = error
    together = [row for row in ready if not answers[row].processors]
    # A caller's own processors may keep count of their calls: an error in another answer calls none of them again.
    groups = [together, *([row] for row in ready if answers[row].processors)]
    return sum(_choose_or_fail([answers[row] for row in rows], _rows(logits, rows)) for rows in groups if rows)


def _choose_or_fail(answers: Sequence[Answer], logits: torch.Tensor) -> int:
    try:
        return _choose(answers, logits)
    except Exception as error:
        if len(answers) == 1:
            answers[0].error = error
            return 0
        return sum(_choose_or_fail([answer], logits[row : row + 1]) for row, answer in enumerate(answers))


def _rows(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _choose(answers: Sequence[Answer], logits: torch.Tensor) -> int:
    samplers = [answer.sampler for answer in answers if answer.sampler is not None]
    chosen = next_tokens(samplers, [answer.tokens for answer in answers], logits)
    told = _logprobs(answers, logits, chosen)
    for row, (answer, token) in enumerate(zip(answers, chosen.tolist(), strict=True)):
        try:
            answer.take(token, told.get(row))
        except Exception as error:  # a criterion of the caller's
            answer.error = error
    return len(answers)


def _logprobs(answers: Sequence[Answer], logits: torch.Tensor, chosen: torch.Tensor) -> dict[int, TokenLogprob]:
    found: dict[int, TokenLogprob] = {}
    by_number: dict[int, list[int]] = {}
    for row, answer in enumerate(answers):
        if answer.options.logprobs is not None:
            by_number.setdefault(answer.options.logprobs, []).append(row)
    for n_top, rows in by_number.items():
        found |= dict(zip(rows, read_logprobs(logits[rows], chosen[rows], n_top), strict=True))
    return found
