"""Features of a sequence before its answer: pooled hidden states of its prompt, and a few plain numbers.

With prompts at full depth their states are there anyway, and pooling them costs next to nothing. With prompts on the route
only the first layers that all routes share can run before a route is chosen, and only their states are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from depthdial.checks import choice
from depthdial.data.tasks import EncodedExample
from depthdial.engine.prefill import Prefill, PrefillInParts
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.plan import Plan
from depthdial.progress import progress_bar
from depthdial.routes import Route
from depthdial.rows.store import RunSettings, UnitStore, unit_name
from depthdial.views.passes import PROMPT_DEPTHS, PromptDepth

POOLINGS = ("last", "mean")
_LENGTH = "log_prompt_tokens"
# Of the first response token's distribution, which a prompt at full depth has given.
_FIRST_TOKEN = ("first_token_entropy", "first_token_probability", "first_token_margin")
_COLUMNS = {"sequence_id": pa.string(), "features": pa.list_(pa.float32())}
_QUARTERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class FeatureSpec:
    """Which features, and which layers a prompt runs for them.

    Attributes:
        n_layers: of the model.
        prompt_layers: how many of its first layers the prompt has run when its features are taken.
        watched: layers, 0-based, after which hidden states are pooled (last token and mean).
        width: of the hidden states.
    """

    n_layers: int
    prompt_layers: int
    watched: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, n_layers: int, width: int, routes: Sequence[Route], prompt_depth: PromptDepth) -> FeatureSpec:
        """States after each quarter of the layers, or after the last one that all routes share from the first layer on.

        Raises:
            InputError: for prompts on the route, if the routes do not even share the first layer.
        """
        choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
        if prompt_depth == "full":
            watched = sorted({max(1, round(share * n_layers)) - 1 for share in _QUARTERS})
            return cls(n_layers, n_layers, tuple(watched), width)
        shared = next((i for i in range(n_layers) if any(i not in route.layers for route in routes)), n_layers)
        if shared == 0:
            raise InputError(
                "The routes do not share the first layer, so with prompt_depth='route' nothing is known of a prompt before "
                "a route is chosen: use prompt_depth='full', or routes that keep layer 0."
            )
        return cls(n_layers, shared, (shared - 1,), width)

    @property
    def is_full(self) -> bool:
        return self.prompt_layers == self.n_layers

    @property
    def route(self) -> Route:
        """What the prompt runs before its features are taken."""
        return Route(tuple(range(self.prompt_layers)), self.n_layers)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the plain numbers, which are the first features."""
        return (_LENGTH, *_FIRST_TOKEN) if self.is_full else (_LENGTH,)

    @cached_property
    def groups(self) -> tuple[slice, ...]:
        """The columns that belong together: the plain numbers, then a hidden state each, layer by layer."""
        n = len(self.scalars)
        starts = range(n, self.n_features, self.width)
        return (slice(0, n), *(slice(start, start + self.width) for start in starts))

    @property
    def n_features(self) -> int:
        return len(self.scalars) + len(self.watched) * len(POOLINGS) * self.width

    def settings(self) -> dict[str, Any]:
        """JSON-ready; `restore` reads it."""
        names = ("n_layers", "prompt_layers", "width")
        return {**{name: getattr(self, name) for name in names}, "watched": list(self.watched)}

    @classmethod
    def restore(cls, document: Mapping[str, Any]) -> FeatureSpec:
        """The specification that `settings` wrote; InputError if it cannot be one."""
        try:
            spec = cls(document["n_layers"], document["prompt_layers"], tuple(document["watched"]), document["width"])
            sizes = (spec.n_layers, spec.prompt_layers, spec.width)
            is_sound = all(isinstance(n, int) and n > 0 for n in sizes) and spec.prompt_layers <= spec.n_layers
            if not (is_sound and spec.watched and all(0 <= layer < spec.prompt_layers for layer in spec.watched)):
                raise ValueError(f"{document!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The stored features are damaged ({error}): fit the controller again.") from error
        return spec


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Features of sequences: `matrix` is (n_sequences, n_features) in fp32, in the order of `sequence_ids`."""

    sequence_ids: tuple[str, ...]
    matrix: np.ndarray


def features_of(prefilled: Prefill, spec: FeatureSpec) -> np.ndarray:
    """(n_sequences, n_features) of a batch whose pass watched `spec.watched`.

    Raises:
        InputError: if they are not finite.
    """
    pooled = prefilled.pooled
    assert pooled is not None and pooled.layers == spec.watched
    scalars = [prefilled.attention_mask.sum(dim=1).float().log()]
    if spec.is_full:
        log_probabilities = prefilled.logits[:, -1].float().log_softmax(-1)
        probabilities = log_probabilities.exp()
        # An impossible token adds nothing to the entropy, and its logarithm is not to be multiplied with.
        entropy = -(probabilities * log_probabilities.clamp(min=-1e4)).sum(-1)
        top = probabilities.topk(2, dim=-1).values
        scalars += [entropy, top[:, 0], top[:, 0] - top[:, 1]]
    # Layer by layer, of each the last token and then the mean: the order of `FeatureSpec.groups`.
    states = torch.stack([pooled.last, pooled.mean], dim=2).flatten(1)
    found = torch.cat([torch.stack(scalars, dim=1).to(states), states], dim=1).cpu().numpy()
    if not np.isfinite(found).all():
        raise InputError("A prompt's hidden states are not finite, so nothing can be told from them: try --dtype float32.")
    return found


def watched_prefill(session: Session, prompts: Sequence[Sequence[int]], spec: FeatureSpec) -> Prefill:
    """The pass that features are taken of: through the untouched model, at full depth or through the shared layers."""
    return session.untouched.prefill_ids(prompts, spec.route, watch=spec.watched)


def watched_parts(session: Session, prompts: Sequence[Sequence[int]], spec: FeatureSpec) -> PrefillInParts:
    """The same pass, to be made in parts."""
    return session.untouched.prefill_in_parts(prompts, spec.route, watch=spec.watched)


@dataclass(frozen=True)
class FeatureRows:
    """Features of a plan's sequences, batch by batch; in a folder, a stopped run goes on.

    `keep` takes those of a batch that a sweep has run, and `collect` runs what is missing.

    Raises:
        InputError: if they are not finite, or the folder belongs to another run.
    """

    plan: Plan
    spec: FeatureSpec
    batch_size: int
    out: Path | None = None

    @cached_property
    def store(self) -> UnitStore:
        settings = {name: value for name, value in self.plan.run.settings.items() if name in _ABOUT}
        run = RunSettings({"kind": "features", "batch_size": self.batch_size, **settings, **self.spec.settings()})
        return UnitStore(run, _COLUMNS, self.out)

    def keep(self, batch: Sequence[EncodedExample], prefilled: Prefill) -> None:
        if self.store.has(_unit(batch)):
            return
        rows = zip(batch, features_of(prefilled, self.spec), strict=True)
        self.store.write(_unit(batch), [{"sequence_id": example.id, "features": row} for example, row in rows])

    def collect(self, *, progress: bool = False) -> PromptFeatures:
        batches = self.plan.session.batches(self.plan.examples, self.batch_size)
        missing = [batch for batch in batches if not self.store.has(_unit(batch))]
        with progress_bar("features", len(missing), show=progress and bool(missing)) as advance:
            for batch in missing:
                self.keep(batch, watched_prefill(self.plan.session, [example.prompt_ids for example in batch], self.spec))
                advance(1)
        return read_features(self.store.collect([_unit(batch) for batch in batches]), self.spec)


def read_features(table: pa.Table, spec: FeatureSpec) -> PromptFeatures:
    """The features in a table that `FeatureRows` collected.

    Raises:
        InputError: if they are not of this specification.
    """
    flat = table.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    ids = tuple(table.column("sequence_id").to_pylist())
    if len(flat) != len(ids) * spec.n_features:
        raise InputError(f"The stored rows do not have {spec.n_features} features each: fit the controller again.")
    return PromptFeatures(ids, flat.reshape(len(ids), spec.n_features).astype(np.float32))


# What of a measurement's settings decides about the features of its sequences.
_ABOUT = (
    *("model", "weights_hash", "dtype", "device", "attention"),
    *("task", "split", "template", "first_prompt", "seed", "source", "max_prompt_tokens"),
)


def _unit(batch: Sequence[EncodedExample]) -> str:
    return unit_name([example.id for example in batch], "features")
