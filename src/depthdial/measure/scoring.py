"""Scores of one batch on its routes: teacher-forced ones, and those of the answers that are generated.

A subject is a model and the reference that it is compared with. A lane is one depth on one batch: it knows the route of each
sequence and the pass over the prompts that it continues on. All functions here take lanes and give scores by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.decode import Decoded
from depthdial.engine.depth import Asked, Batch, Depth
from depthdial.engine.prefill import Prefill
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.engine.sampling import GREEDY, DecodingPolicy, sweep_draws
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import Predictions, by_route, forced_logits, nll, right_padded, row_slices
from depthdial.measure.cost import ModelCost
from depthdial.measure.quality import ROUGE_METRICS, rouge
from depthdial.measure.references import Reference
from depthdial.measure.token_cost import deciding_flops, token_cost
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth

K = TypeVar("K")
Scores = dict[int, dict[str, Any]]  # by row of the batch
Texts = Mapping[int, Sequence[int]]  # token ids, by row of the batch


@dataclass(frozen=True)
class SweepOptions:
    """How answers are made and scored; `samples` is 0 where each is the greedy one.

    `full_untouched`: prompts and the full route run without the model's adapters, so that the full route is the full model.
    """

    metrics: tuple[str, ...]
    max_new_tokens: int
    fidelity_tokens: int
    use_stemmer: bool
    keep_text: bool
    samples: int = 0
    policy: DecodingPolicy = GREEDY
    full_untouched: bool = False
    rouge_tokenizer: str = "default"

    def settings(self) -> dict[str, Any]:
        """For the run's settings; options added later are omitted at their defaults, so that old folders stay resumable."""
        later = ("samples", "policy", "full_untouched", "rouge_tokenizer")
        said = {name: value for name, value in vars(self).items() if name not in later}
        said |= {"samples": self.samples, **vars(self.policy)} if self.samples else {}
        if self.compares and self.fidelity_tokens > self.max_new_tokens:
            # Rows from before this was so had KL and agreement on no more than `max_new_tokens`.
            said["fidelity"] = "on fidelity_tokens"
        said |= {"full_untouched": True} if self.full_untouched else {}
        return said | ({} if self.rouge_tokenizer == "default" else {"rouge_tokenizer": self.rouge_tokenizer})

    @property
    def n_answers(self) -> int:
        """Of each sequence on each route."""
        return self.samples or 1

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is generated."""
        return max(self.max_new_tokens * self.generates, self.fidelity_tokens * self.compares)

    @property
    def generates(self) -> bool:
        return any(metric in ROUGE_METRICS for metric in self.metrics)

    @property
    def compares(self) -> bool:
        return "kl" in self.metrics or "agreement" in self.metrics


@dataclass(frozen=True)
class Subject:
    """What is measured, and what it is compared with.

    Attributes:
        session: the model as it is.
        reference: the full model that KL and agreement compare with: the untouched one, unless another is given.
        full_untouched: whether prompts and the full route run on the reference.
    """

    session: Session
    reference: Reference
    asked: Asked
    full_untouched: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether the full route is another model than the reference, with another pass over the prompts."""
        return self.reference.untouched is not self.session and not self.full_untouched

    def prompts(self, batch: Sequence[EncodedExample], watch: Sequence[int] = ()) -> Prompts:
        """A batch behind the pass that its routes continue on."""
        if self.is_apart:
            return Prompts(tuple(batch), self.session.prefill(batch), self.session)
        return self.compared(batch, watch)

    def compared(self, batch: Sequence[EncodedExample], watch: Sequence[int] = ()) -> Prompts:
        """A batch behind the reference's own pass."""
        return Prompts(tuple(batch), self.reference.prefill(batch, watch), self.reference.untouched)

    def teacher(self, prompts: Prompts) -> Lane:
        """The reference, on prompts from `compared`."""
        session = self.reference.untouched
        return Lane(self, prompts, (session.full,) * len(prompts.examples), session)

    def lane(self, depth: Depth, prompts: Prompts) -> Lane:
        """A depth on a batch from `prompts`."""
        given = Batch([e.prompt_ids for e in prompts.examples], [e.id for e in prompts.examples], prompts.prefilled)
        assigned = depth.assign(self.session, given, self.asked)
        full = self.reference.untouched if self.full_untouched else assigned.running(self.session, self.session.full)
        if assigned.full is not None and assigned.full is not prompts.prefilled:
            prompts = replace(prompts, prefilled=assigned.full, session=full)
        return Lane(self, prompts, assigned.routes, full, assigned.session)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sequences behind one pass over their prompts.

    Attributes:
        session: what made the pass.
    """

    examples: tuple[EncodedExample, ...]
    prefilled: Prefill
    session: Session

    def repeated(self, n: int) -> Prompts:
        """Each sequence `n` times; repetitions stand together."""
        if n == 1:
            return self
        rows = [i for i in range(len(self.examples)) for _ in range(n)]
        return replace(self, examples=tuple(self.examples[i] for i in rows), prefilled=select(self.prefilled, rows))


@dataclass(frozen=True, eq=False)
class Lane:
    """One depth on one batch.

    Attributes:
        routes: one a sequence; a token-wise depth in a route's place.
        full: what the full route runs on.
        own: what the others run on; None: the subject's session.
    """

    subject: Subject
    prompts: Prompts
    routes: tuple[Running, ...]
    full: Session
    own: Session | None = None

    @cached_property
    def groups(self) -> dict[Running, list[int]]:
        """Rows by the route that they take."""
        return by_route(self.routes)

    @property
    def vocabulary(self) -> int:
        return self.prompts.prefilled.logits.shape[-1]

    def repeated(self, n: int, prompts: Prompts) -> Lane:
        """The same for prompts that are repeated."""
        return replace(self, prompts=prompts, routes=tuple(route for route in self.routes for _ in range(n)))

    def running(self, route: Running) -> Session:
        return self.full if route.is_full else self.own or self.subject.session

    def ready(self, route: Running, rows: Sequence[int]) -> Prefill:
        """The prompts of some rows, to be continued on `route`."""
        session = self.running(route)
        if self.subject.asked.prompt_depth == "full" or (route.is_full and session is self.prompts.session):
            return select(self.prompts.prefilled, rows)
        assert not isinstance(route, TokenDepth)
        return session.prefill([self.prompts.examples[i] for i in rows], route)

    def shared(self, prefixes: SharedPrefixes, route: Running, members: Sequence[int]) -> SharedPrefixes | None:
        """What lanes have in common on some rows: the model that runs, and a full pass over the prompts."""
        if self.subject.asked.prompt_depth != "full":
            return None
        return prefixes.on(id(self.running(route).model), id(self.prompts.prefilled), tuple(members))

    def forced(
        self, route: Running, rows: Sequence[int], texts: Texts, prefixes: SharedPrefixes
    ) -> Iterator[tuple[int, torch.Tensor, dict[str, Any]]]:
        """(row, logits of its own text, what a token-wise depth ran) of some rows, a slice of them in memory at a time."""
        session, lengths = self.running(route), {i: len(text) for i, text in texts.items()}
        for members in row_slices(rows, lengths, self.vocabulary):
            tokens, mask = right_padded([texts[i] for i in members], session.pad_token_id, session.device)
            depth = _for_batch(route, [self.prompts.examples[i].id for i in members])
            shared = self.shared(prefixes, route, members)
            logits = forced_logits(session.model, depth, self.ready(route, members), tokens, mask, shared)
            # A text's first token is the prompt's; its last one predicts nothing, and runs beside longer texts alone.
            steps = [lengths[i] - 1 for i in members]
            means = depth.mean_layers(steps) if isinstance(depth, TokenDepth) else [None] * len(steps)
            for i, own, layers in zip(members, logits, means, strict=True):
                ran = {} if layers is None else {"layers_run": layers, "cost": layers / depth.n_layers}
                yield i, own[: lengths[i]], ran


def select(prefilled: Prefill, rows: Sequence[int]) -> Prefill:
    return prefilled.select(torch.tensor(rows, device=prefilled.input_ids.device))


def reference_scores(lanes: Mapping[K, Lane], batch: Sequence[EncodedExample]) -> dict[K, Scores]:
    """NLL of the references under every lane, where there are any."""
    texts = {i: example.reference_ids for i, example in enumerate(batch) if example.reference_ids}
    found: dict[K, Scores] = {key: {} for key in lanes}
    prefixes = SharedPrefixes()
    for key, lane in lanes.items():
        for route, members in lane.groups.items():
            for i, logits, ran in lane.forced(route, [i for i in members if i in texts], texts, prefixes):
                found[key][i] = {**ran, "nll": nll(logits, torch.tensor(texts[i], device=logits.device))}
    return found


def fidelity_scores(teacher: Lane, lanes: Mapping[K, Lane], texts: Texts) -> dict[K, Scores]:
    """KL and agreement of every lane with the reference, on texts of all rows; those that it says itself.

    `agreed` has the agreement token by token, as a text of 1 and 0.
    """
    found: dict[K, Scores] = {key: {} for key in lanes}
    lengths, full = {i: len(text) for i, text in texts.items()}, teacher.routes[0]
    # The reference's logits of a slice serve all lanes.
    for rows in row_slices(range(len(texts)), lengths, teacher.vocabulary):
        prefixes = SharedPrefixes()
        own = {i: logits for i, logits, _ in teacher.forced(full, rows, texts, prefixes)}
        predictions = {i: Predictions.of(logits) for i, logits in own.items()}
        for key, lane in lanes.items():
            for route, members in lane.groups.items():
                members = [i for i in members if i in own]
                is_teacher = (
                    route.is_full and lane.full is teacher.full and lane.prompts.prefilled is teacher.prompts.prefilled
                )
                known = ((i, own[i], {}) for i in members) if is_teacher and len(members) == len(own) else None
                for i, logits, ran in known or lane.forced(route, members, texts, prefixes):
                    kl, agreed = predictions[i].compared(logits)
                    told = "".join("01"[same] for same in agreed.tolist())
                    found[key][i] = {**ran, "kl": kl, "agreement": agreed.float().mean().item(), "agreed": told}
    return found


@dataclass(frozen=True)
class Costs:
    """What answers cost in theory.

    Attributes:
        skipped_flops: of a layer that a token skips, by what it leaves in the cache.
    """

    model: Any
    cost: ModelCost
    prompt_depth: str
    skipped_flops: Mapping[str, float]

    def columns(self, route: Running, prompt_tokens: int, new_tokens: int, ran: torch.Tensor | None) -> dict[str, Any]:
        """Of one answer; `ran`, (n_steps, n_layers), of a token-wise depth."""
        size = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        if not isinstance(route, TokenDepth):
            found = vars(self.cost.of(route, **size, prompt_route=None if self.prompt_depth == "full" else route))
            return {name: value for name, value in found.items() if name != "layers"}
        assert ran is not None
        skipped = self.skipped_flops[route.key_values]
        found = dict(vars(token_cost(self.cost, ran.numpy(), **size, skipped_flops=skipped)))
        layers = found.pop("layers")
        found["decide_flops"] = deciding_flops(self.model, route.policy, new_tokens, layers)
        if len(ran):
            return {**found, "layers_run": layers, "cost": layers / route.n_layers}
        # An answer of one token ran nothing but the prompt: what it cost is not known from it.
        del found["weight_bytes"]
        return found


@dataclass(frozen=True)
class Answers:
    """How a sweep makes and scores answers."""

    options: SweepOptions
    tokenizer: Any
    costs: Costs
    seed: object

    def sampled(self, lane: Lane, route: Running, rows: Sequence[int], ready: Prefill, n_tokens: int) -> Decoded:
        """An answer of at most `n_tokens` for each of `rows`, whose repetitions stand together, numbered from 0."""
        keys = self._keys(lane, rows)
        draws = sweep_draws(self.seed, keys, route, n_tokens)
        return lane.running(route).decode(_for_batch(route, keys), ready, n_tokens, self.options.policy, draws)

    def scores(self, lane: Lane, route: Running, members: Sequence[int], known: Decoded | None) -> dict[int, list[dict]]:
        """Columns of the answers of some rows of the batch on their route: the greedy one of each, or all of its samples.

        Args:
            known: the full route's greedy answers to the whole batch, where they have been made.
        """
        n, ready = self.options.n_answers, lane.ready(route, members)
        rows = [i for i in members for _ in range(n)]
        if self.options.samples:
            ready = select(ready, [place for place in range(len(members)) for _ in range(n)])
            decoded = self.sampled(lane, route, rows, ready, self.options.max_new_tokens)
        else:
            known = known if route.is_full and len(members) == len(lane.routes) else None
            depth = _for_batch(route, self._keys(lane, rows))
            decoded = known or lane.running(route).decode(depth, ready, self.options.max_new_tokens)
        found: dict[int, list[dict]] = {i: [] for i in members}
        for place, i in enumerate(rows):
            found[i].append(self._columns(lane.prompts.examples[i], route, ready, decoded, place))
        return found

    def _keys(self, lane: Lane, rows: Sequence[int]) -> list[Any]:
        """What decides about chance in each answer: the sequence, and of samples also the number."""
        ids, n = [lane.prompts.examples[i].id for i in rows], self.options.samples
        return [(one, place % n) for place, one in enumerate(ids)] if n else ids

    def _columns(
        self, example: EncodedExample, route: Running, ready: Prefill, decoded: Decoded, place: int
    ) -> dict[str, Any]:
        tokens, part, options = decoded.tokens[place], decoded.part_of(place), self.options
        answer = self.tokenizer.decode(tokens, skip_special_tokens=True)
        scores: dict[str, Any] = {}
        if example.reference is not None:
            known = example.references or example.reference
            scores = rouge(answer, known, use_stemmer=options.use_stemmer, tokenizer=options.rouge_tokenizer)
        ran = None if decoded.ran is None else decoded.ran[place]
        return {
            "batch_size": len(part.rows),
            "batch_steps": part.steps,
            "batch_decode_sec": part.decode_sec,
            "batch_prefill_sec": ready.prefill_sec,
            "step_sec": part.decode_sec / part.steps if part.steps else None,
            "decode_sec": part.decode_sec / len(part.rows),
            **scores,
            **self.costs.columns(route, len(example.prompt_ids), len(tokens), ran),
            "new_tokens": len(tokens),
            "finish_reason": decoded.finish_reasons[place],
            "answer_hash": hashlib.sha256(answer.encode(errors="surrogatepass")).hexdigest()[:16],
            **(self._texts(example, answer) if options.keep_text else {}),
        }

    def _texts(self, example: EncodedExample, answer: str) -> dict[str, Any]:
        prompt = self.tokenizer.decode(example.prompt_ids, skip_special_tokens=True)
        return {"answer": answer, "prompt": prompt, "reference": example.reference}


def _for_batch(depth: Running, sequence_ids: Sequence[object]) -> Running:
    return depth.for_batch(sequence_ids) if isinstance(depth, TokenDepth) else depth
