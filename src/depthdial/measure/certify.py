"""Certify depths: "24 layers for every prompt lose at most 2 points of ROUGE-L", or that the rows cannot show it.

What is tested, and on which rows, is written down with its digest before a row is run; see `guarantee.plan` for the promise.
The loss of a row is the untouched full model's quality minus the depth's, on answers that both generate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from depthdial.checks import choice, whole
from depthdial.data.leakage import prompt_hashes, require_no_test_split
from depthdial.data.tasks import Task, as_task
from depthdial.engine.depth import Depth
from depthdial.errors import InputError
from depthdial.files import claim, write_json
from depthdial.guarantee.plan import CONFORMAL, Certificate, CertificationPlan
from depthdial.hf.architectures import count_layers
from depthdial.measure.passing import CHECKS, Scorer, check_patterns, scored, source_of
from depthdial.measure.plan import ModelIdentity, Routes, unique_routes
from depthdial.measure.quality import require_rouge
from depthdial.measure.sweep import Sweep
from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.score_table import read_scores
from depthdial.progress import progress_bar
from depthdial.provenance import digest, environment
from depthdial.routes import Route
from depthdial.rows.store import CERTIFICATES_FILE

_LOG = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
METRICS = ("rouge_l", "agreement", *CHECKS)
FULL, _SCORE = "full", "score"


def certify_depths(
    model: Any,
    tokenizer: Any,
    *,
    task: Task | str,
    depths: Routes,
    metric: str | Scorer = "rouge_l",
    epsilon: tuple[float, ...] | float = (0.02,),
    delta: float = 0.05,
    method: str = "star_betting",
    max_new_tokens: int = 64,
    prompt_depth: str = "full",
    batch_size: int = 16,
    seed: int = 0,
    out: Path | str | None = None,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> tuple[Certificate, ...]:
    """Certify the cheapest of some depths that surely loses little quality against the untouched full model.

    Depths are tested in their order, until the first that cannot be certified: give them from the safest to the cheapest.

    Args:
        task: calibration rows, drawn as later prompts will be: no test split, and none that anything was fitted on.
        depths: one or several of what `sweep` takes as routes: routes, controllers at a fixed price, token policies.
        metric: `rouge_l`, agreement (with the full model), exact_match, contains or regex (of the reference), or a function
            `score(example, answer)` that gives a number from 0 to 1.
        epsilon: the mean loss that is allowed: 0.02 is 2 points. Of several, planned together, there is a certificate each.
        delta: probability that a certificate is wrong.
        method: `star_betting`, betting, empirical_bernstein, hoeffding_bentkus, hoeffding or conformal_risk_control.
        max_new_tokens: longest answer, in tokens; the certificate holds for that length.
        prompt_depth: `full` (the prompt runs every layer) or route.
        batch_size: sequences run together.
        seed: of the order in which rows are tested.
        out: a folder for the plan, which is written first, for the rows, and the certificates. A stopped run goes on there,
            and another plan is refused. Rows of exact_match, contains, regex and functions hold the answers.
        identity: which model this is, where the caller knows; found out otherwise.

    Returns:
        A certificate for each epsilon, in order.

    Raises:
        InputError: for bad arguments, a test split, rows that something was fitted or searched on, rows without what the
            metric needs, and fewer rows than could certify epsilon at all; before anything runs.

    Example:
        >>> same = dd.Route((0, 1, 2, 3, 4), 6)
        >>> (certificate,) = dd.certify_depths(model, tokenizer, task=many, depths=same, epsilon=0.9, max_new_tokens=4)
        >>> certificate.plan.settings
        ('full', '0-4')
    """
    task = as_task(task, held_out=True)
    asked = Asked.of(metric, epsilon, delta, method)
    asked.check_rows(task)
    tell_repeated(task)
    n_layers = count_layers(model)
    chosen = tuple(one for one in unique_routes(depths, n_layers, model) if not getattr(one, "is_full", False))
    if not chosen:
        raise InputError("The full model alone loses nothing, and needs no certificate: give a depth that skips layers.")
    routes = [Route(tuple(range(n_layers)), n_layers, FULL), *chosen]
    identity = identity or ModelIdentity.of(model)
    new_tokens = whole("max_new_tokens", max_new_tokens, 1)
    job = Sweep.of(
        model,
        tokenizer,
        task=task,
        routes=routes,
        metrics=asked.swept(task),
        out=out,
        batch_size=batch_size,
        max_new_tokens=new_tokens,
        fidelity_tokens=new_tokens,
        prompt_depth=prompt_depth,
        keep_text=asked.scorer is not None,
        identity=identity,
        full_untouched=True,
    )
    about = {**vars(identity), **_rows_of(task), "depths": {one.name: str(one) for one in job.plan.depths}, **asked.about()}
    about |= {"prompt_depth": prompt_depth, "template": job.plan.asked.template, "max_prompt_tokens": task.max_prompt_tokens}
    plans = [
        CertificationPlan(
            settings=tuple(depth.name for depth in job.plan.depths),
            epsilon=each,
            delta=None if method == CONFORMAL else delta,
            method=method,
            bounds=asked.bounds,
            seed=seed,
            cost_unit=LAYER_STEPS,
            metric=asked.name,
            answer_tokens=new_tokens,
            about=about,
        )
        for each in asked.epsilons
    ]
    if out is not None:  # before a row is run
        told = {"kind": "certify", "plans": [{"digest": plan.digest, **plan.to_dict()} for plan in plans]}
        claim(Path(out) / PLAN_FILE, told, "certification plan")
    with progress_bar("certify", job.pieces(job.items()), show=progress) as advance:
        job.run_shared(job.items(), advance)
    certificates = certificates_of(plans, asked.table(task, job.collect()), job.plan.depths, task)
    if out is not None:
        write_json(Path(out) / CERTIFICATES_FILE, {"certificates": [one.to_dict() for one in certificates]})
    return certificates


@dataclass(frozen=True)
class Asked:
    """What is to be certified, on whatever rows.

    Attributes:
        name: of the metric.
        scorer: of an answer, where no sweep knows the metric.
    """

    name: str
    scorer: Scorer | None
    epsilons: tuple[float, ...]
    delta: float
    method: str

    @classmethod
    def of(cls, metric: str | Scorer, epsilon: Sequence[float] | float, delta: float, method: str) -> Asked:
        """Checked: InputError for what is out of range."""
        epsilons = (epsilon,) if np.ndim(epsilon) == 0 else tuple(epsilon)
        if not epsilons or len(set(epsilons)) < len(epsilons):
            raise InputError(
                f"The losses that are allowed are {epsilon!r}: give one or more different numbers, such as 0.02."
            )
        if callable(metric):
            asked = cls(getattr(metric, "__name__", type(metric).__name__), metric, epsilons, delta, method)
        else:
            choice("metric", metric, METRICS)
            asked = cls(metric, CHECKS.get(metric), epsilons, delta, method)
        for each in epsilons:  # refuses what is out of range
            asked._trial(each)
        return asked

    @property
    def known(self) -> str | None:
        """The metric's name if it is one of `METRICS`; None for a function of the caller's, whatever it is called."""
        return self.name if self.scorer is CHECKS.get(self.name) else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a loss: nothing agrees with the full model more than it does itself."""
        return (0.0, 1.0) if self.known == "agreement" else (-1.0, 1.0)

    def _trial(self, epsilon: float) -> CertificationPlan:
        """A plan of one depth."""
        delta = None if self.method == CONFORMAL else self.delta
        return CertificationPlan((FULL, "another"), epsilon, delta, self.method, self.bounds)

    def check_rows(self, task: Task) -> None:
        """Refuse rows that cannot certify what is asked, whatever the model says.

        Raises:
            InputError: for a test split, too few rows, or rows without the references that the metric needs.
        """
        require_no_test_split(task, "certify")
        n = len(task.examples)
        for epsilon in self.epsilons:
            least = self._trial(epsilon).least_rows
            if least is None or n < least:
                wanted = "more than a million" if least is None else f"at least {least}"
                raise InputError(
                    f"{n} rows cannot certify a loss of at most {epsilon:g}, which takes {wanted} even where nothing is "
                    "lost: give more rows, or allow a greater loss."
                )
        if self.known == "rouge_l":
            require_rouge(task.examples, "certify agreement")
        if self.known in CHECKS:
            without = next((example.id for example in task.examples if not any(map(str.strip, example.references))), None)
            if without is not None:
                raise InputError(f"Row {without!r} has no reference, and {self.name} needs one: give it one.")
        if self.known == "regex":
            check_patterns(task)

    def swept(self, task: Task) -> tuple[str, ...]:
        """What a sweep measures for it; any ROUGE makes it answer at every depth."""
        if self.scorer is None:
            return (self.name,)
        return ("rouge_l",) if task.any_reference else ("rouge_l", "agreement")

    def about(self) -> dict[str, Any]:
        """What a plan says of the metric beside its name."""
        return {} if self.scorer is None else {"scored_by": source_of(self.scorer)}

    def table(self, task: Task, rows: pa.Table) -> pa.Table:
        """Rows with the metric in the column `score`."""
        if self.scorer is None:
            return rows.append_column(_SCORE, rows[self.name])
        examples = {example.id: example for example in task.examples}
        pairs = zip(rows["sequence_id"].to_pylist(), rows["answer"].to_pylist(), strict=True)
        scores = [scored(self.scorer, examples[one], answer or "") for one, answer in pairs]
        return rows.append_column(_SCORE, pa.array(scores, pa.float64()))


def tell_repeated(task: Task) -> None:
    """Log a warning for rows with the prompt of another row, which count as draws of their own."""
    n, n_distinct = len(task.examples), len(set(prompt_hashes(task)))
    if n_distinct < n:
        _LOG.warning(
            "%d of the %d rows repeat the prompt of another row: the certificate is for prompts that repeat as often.",
            n - n_distinct,
            n,
        )


def certificates_of(
    plans: Sequence[CertificationPlan], rows: pa.Table, depths: Sequence[Depth], task: Task
) -> tuple[Certificate, ...]:
    """A certificate for each plan, from rows with a `score`."""
    found = read_scores(rows, metric=_SCORE, cost=LAYER_STEPS, sequence="sequence_id", route="route", full_route=FULL)
    columns = [found.routes.index(depth.name) for depth in depths]
    at = {name: place for place, name in enumerate(found.sequence_ids)}
    # In the order of the task, which batches do not keep; the plan's seed shuffles from there.
    places = [at[example.id] for example in task.examples]
    values, costs = found.values[places][:, columns], found.costs[places][:, columns]
    layers = None if found.layers is None else found.layers[:, columns].mean(axis=0)
    about = {**_rows_of(task), "prompts": list(prompt_hashes(task)), "n_layers": found.n_layers, **environment()}
    about |= {"quality": values.mean(axis=0).tolist()}
    certificates = []
    for plan in plans:
        one = plan.certify(values[:, :1] - values, costs, provenance=about)
        if layers is not None:
            saved = float(layers[0] - layers[one.certified or 0])
            one = replace(one, provenance={**one.provenance, "layers_saved_per_sequence": saved})
        certificates.append(one)
    return tuple(certificates)


def _rows_of(task: Task) -> Mapping[str, Any]:
    prompts = digest({"prompts": list(prompt_hashes(task))})
    return {"task": task.name, "split": task.split, "source": task.source_fingerprint, "n_rows": len(task.examples)} | {
        "rows": prompts
    }
