"""The prompts that a search looks at, with what a route is to say behind them, ready to be tried with many routes.

KL is taken on the full model's own greedy answers, and NLL on the rows' references. The prompts run every layer, or the
tried route as well (`prompt_depth`). Of a model with adapters the routes run with them, and the full model is the untouched
one, without them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.prefill import Prefill
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import Predictions, forced_logits, forced_states, nll, right_padded, routed_logits
from depthdial.errors import InputError
from depthdial.measure.references import Reference
from depthdial.routes import Route
from depthdial.search.states import directions, text_states

SPECULATION = "speculation"
METRICS = ("kl", "nll", SPECULATION)


@dataclass(frozen=True)
class _Batch:
    """Prompts with the texts behind them.

    Attributes:
        prompts, texts: token ids; the texts are the full model's answers, or for NLL the references.
        tokens, mask: (n_sequences, n_tokens), the texts right-padded.
        full: the full model's predictions on each text, where KL is asked for.
        prefixes: what routes that were tried have computed of their first layers.
        on_route: whether the prompts run the tried route too.
    """

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    prefilled: Prefill
    tokens: torch.Tensor
    mask: torch.Tensor
    full: tuple[Predictions, ...]
    prefixes: SharedPrefixes | None
    on_route: bool = False

    def logits(self, session: Session, route: Route) -> torch.Tensor:
        """What a route predicts of each text, (n_sequences, n_tokens, vocabulary)."""
        if self.on_route:
            prompts = (self.prefilled.input_ids, self.prefilled.attention_mask)
            return routed_logits(session.model, route, *prompts, self.tokens, self.mask, self.prefixes)
        return forced_logits(session.model, route, self.prefilled, self.tokens, self.mask, self.prefixes)


@dataclass(frozen=True)
class Calibration:
    """Prefilled calibration prompts and the texts that routes are tried on.

    Attributes:
        metric: `kl`, `nll`, `speculation`, or None where only hidden states are asked for.
        seconds: what the prompts and the full model's answers took.
    """

    session: Session
    metric: str | None
    batches: tuple[_Batch, ...]
    seconds: float

    @classmethod
    def of(
        cls,
        session: Session,
        examples: Sequence[EncodedExample],
        metric: str | None,
        answer_tokens: int,
        batch_size: int,
        reference: Reference | None = None,
        prompt_depth: str = "full",
    ) -> Calibration:
        """Run the prompts; `reference` may have run them before.

        Args:
            prompt_depth: `full`, or `route`: then a tried route runs the prompts too.

        Raises:
            InputError: for NLL, if a row has no reference.
        """
        missing = next((e.id for e in examples if not e.reference_ids), None)
        if metric == "nll" and missing is not None:
            raise InputError(f"Row {missing!r} has no reference, which NLL is taken on: search by kl, or leave the row out.")
        started = time.perf_counter()
        known, batches = reference or Reference(session), session.batches(examples, batch_size)
        prefixes = SharedPrefixes()  # one memory for all batches
        each = ((batch, metric, answer_tokens, prefixes.on(i), prompt_depth == "route") for i, batch in enumerate(batches))
        batches = tuple(_run(session, known, *one) for one in each)
        return cls(session, metric, batches, time.perf_counter() - started)

    @property
    def n_sequences(self) -> int:
        return sum(len(batch.texts) for batch in self.batches)

    @property
    def n_tokens(self) -> int:
        """Of the texts behind the prompts."""
        return sum(len(text) for batch in self.batches for text in batch.texts)

    @property
    def n_prompt_tokens(self) -> int:
        return sum(len(prompt) for batch in self.batches for prompt in batch.prompts)

    @property
    def context_tokens(self) -> int:
        """What a response token has in sight in the mean: the prompt and half of the text."""
        return round((self.n_prompt_tokens + self.n_tokens / 2) / self.n_sequences)

    def harm(self, route: Route) -> float:
        """Mean over sequences of the mean KL (or NLL) over their tokens, in nats.

        Raises:
            InputError: if it is not finite.
        """
        total = 0.0
        for batch in self.batches:
            logits = batch.logits(self.session, route)
            for i, text in enumerate(batch.texts):
                own = logits[i, : len(text)]
                total += batch.full[i].fidelity(own)[0] if batch.full else nll(own, batch.tokens[i, : len(text)])
        mean = total / self.n_sequences
        if not math.isfinite(mean):
            raise InputError(
                f"The {str(self.metric).upper()} of route {route} is not a number: the model's logits are not finite, try "
                "--dtype float32."
            )
        return mean

    def agreed(self, route: Route) -> list[str]:
        """Of each text, which of its tokens the route would have chosen too: 1 and 0, the first one the prompt's own."""
        found = []
        for batch in self.batches:
            logits = batch.logits(self.session, route)
            same = (logits.argmax(-1) == batch.tokens).tolist()
            found += ["".join("01"[one] for one in row[: len(text)]) for row, text in zip(same, batch.texts, strict=True)]
        return found

    def answer_states(self, layers: Sequence[int]) -> torch.Tensor:
        """(n_tokens, width), in fp32 and of length 1: hidden states at the texts' tokens once some layers alone have run.

        Behind prompts at full depth. What earlier calls computed of the first layers is not computed again.

        Raises:
            InputError: if a state is not finite.
        """
        route, found = Route(tuple(layers), self.session.n_layers), []
        for batch in self.batches:
            prefixes = None if batch.prefixes is None else batch.prefixes.on(id(batch), "states")
            states = forced_states(self.session.model, route, batch.prefilled, batch.tokens, batch.mask, prefixes).states[-1]
            found.append(states[batch.mask.bool()].float())
        return directions(torch.cat(found))

    def states(self, start: int = 0) -> Iterator[torch.Tensor]:
        """Hidden states of prompts and answers, from a batch on."""
        for batch in self.batches[start:]:
            texts = [(*prompt, *text) for prompt, text in zip(batch.prompts, batch.texts, strict=True)]
            yield text_states(self.session, texts)


def _run(
    session: Session,
    reference: Reference,
    batch: Sequence[EncodedExample],
    metric: str | None,
    answer_tokens: int,
    prefixes: SharedPrefixes,
    on_route: bool,
) -> _Batch:
    prompts, teacher = tuple(e.prompt_ids for e in batch), reference.untouched
    prefilled = reference.prefill(batch) if teacher is session else session.prefill(batch)
    if metric == "nll":
        texts = tuple(e.reference_ids[:answer_tokens] for e in batch)
        padded = right_padded(texts, session.pad_token_id, session.device)
        return _Batch(prompts, texts, prefilled, *padded, (), prefixes, on_route)
    own = prefilled if teacher is session else reference.prefill(batch)
    full: tuple[Predictions, ...] = ()
    texts = reference.answers(batch, own, answer_tokens).tokens
    tokens, mask = right_padded(texts, session.pad_token_id, session.device)
    if metric == "kl":
        shared = prefixes if teacher is session else None
        asked = _Batch(prompts, texts, own, tokens, mask, (), shared, on_route)
        logits = asked.logits(teacher, session.full)
        full = tuple(Predictions.of(row[: len(text)]) for row, text in zip(logits, texts, strict=True))
    return _Batch(prompts, texts, prefilled, tokens, mask, full, prefixes, on_route)
