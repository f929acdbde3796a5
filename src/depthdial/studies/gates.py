"""Does the hidden state help to decide, token by token, which layers run? The paper's question, with the controls it lacks.

Gates that see the hidden state and gates with a fixed input are trained to the same budgets from the same fine-tuned
model, over several seeds (arXiv 2410.20022, section 3 and Figure 1b), and measured beside chance at the same rates, the
static route of as many layers and CALM's confidence exits.

Every training and every measurement is a run of its own. A study that was stopped goes on where it stood, and a second
process that is started on the same folder takes the runs that nobody has: that is how a study uses several machines.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.data.leakage import prompt_hashes, require_apart, require_unsearched
from depthdial.data.tasks import Task, as_task, encode
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import claim, write_atomically
from depthdial.hf.adapter import merged
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.facts import ModelFacts
from depthdial.hf.load import with_adapter
from depthdial.measure.confidence import exit_thresholds
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.sweep import sweep
from depthdial.progress import progress_bar
from depthdial.report.gates.page import write_gates_report
from depthdial.routes import Route
from depthdial.rows.gates import GATE_COLUMNS, GateMap
from depthdial.rows.sharing import share_work, work_lock
from depthdial.rows.store import schema_of
from depthdial.train.depth.finetune import finetune
from depthdial.train.gates.study import GatesStudySettings, Run, runs_of
from depthdial.train.gates.training import train_gates
from depthdial.train.rows import training_rows
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.gates import GATE_MODES, TokenGates
from depthdial.views.tokens.policy import CONFIDENCES, Bernoulli
from depthdial.views.tokens.view import token_view

_MAPPED_PROMPT_TOKENS = 6  # of a map, so that one sees where the response starts


@dataclass(frozen=True)
class GatesStudyResult:
    """What a study leaves: the report's path and all rows."""

    report: Path
    rows: pa.Table


@dataclass(frozen=True)
class _Measured:
    """A depth to measure, and what a study's rows call it: see `GATE_COLUMNS`."""

    controller: str
    mode: str
    target: float | None
    train_seed: int | None
    depth: TokenDepth | Route

    def columns(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "depth"}


def gates_study(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    training: Task,
    out: Path | str,
    settings: GatesStudySettings | None = None,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> GatesStudyResult:
    """Train and measure everything that is missing in `out`, and write the report.

    Args:
        model: the model to start from; not changed.
        task: sequences to measure on.
        training: sequences to learn from, and to find thresholds on; none of `task`'s.
        name: what the model was loaded by.
        say: called with one line at the start of each step.

    Raises:
        InputError: if the tasks share a sequence, `out` belongs to another study, or from any step.

    Example:
        >>> sizes = {"seeds": 2, "base_tokens": 0, "tokens": 99, "max_new_tokens": 4, "controls": False}
        >>> settings = dd.GatesStudySettings(budgets=(0.75,), inputs=("fixed",), other_inputs=(), **sizes)
        >>> options = {"training": many, "out": folder / "gates-study", "settings": settings}
        >>> result = dd.gates_study(model, tokenizer, task=task, **options)
    """
    settings, folder, say = settings or GatesStudySettings(), Path(out), say or (lambda line: None)
    task, training = as_task(task), as_task(training, held_out=True)
    require_apart(task, prompt_hashes(training), "to train the gates")
    require_unsearched(task, model=model, can_allow=False)
    runs, facts = runs_of(settings), ModelFacts.of(model)
    for run in runs:  # before anything trains
        if run.seed is not None:
            settings.of_gates(run).config(facts.n_layers, facts.width)
    token_view(model, Bernoulli((1.0,) * facts.n_layers), key_values=settings.key_values)
    if (folder / "rows.parquet").exists() and not (folder / "study.json").exists():
        raise InputError(f"{folder} holds rows of something else: choose another --out, or delete the folder.")
    identity = ModelIdentity.of(model, name)
    about = {
        **asdict(settings),
        "model": identity.name,
        "weights_hash": identity.weights_hash,
        "task": task.name,
        "split": task.split,
        "data": task.fingerprint,
        "sequences": len(task.examples),
        "training_split": training.split,
        "training_data": training.fingerprint,
        "training_rows": len(training.examples),
    }
    claim(folder / "study.json", about, "gates study", today=_today)
    base, base_identity = model, identity
    if settings.base_tokens:  # T: the model fine-tuned at full depth, from which all gates start
        say("fine-tuning at full depth")
        options = {"settings": settings.of_base, "name": identity.name, "progress": progress}
        with work_lock(folder, "base"):
            finetune(model, tokenizer, task=training, routes="full", out=folder / "base", **options)
        base = _merged(model, folder / "base", identity.name)
        base_identity = ModelIdentity.of(base, f"{identity.name} + T")
    job = _Study(folder, settings, base, tokenizer, base_identity, task, training)
    say(f"{len(runs)} trainings and measurements")
    with progress_bar("runs", len(runs), show=progress) as advance:
        for _ in share_work(runs, folder, lambda run: run.name, lambda run: job.rows_of(run).exists(), job.do):
            advance()
    rows = pa.concat_tables([pq.read_table(job.rows_of(run)) for run in runs])
    write_atomically(folder / "rows.parquet", lambda part: pq.write_table(rows, part))
    say("report")
    return GatesStudyResult(write_gates_report(folder), rows)


def _today(old: Mapping[str, Any]) -> dict[str, Any]:
    return {"r" if name == "rank" else name: value for name, value in old.items()}


@dataclass(frozen=True)
class _Study:
    folder: Path
    settings: GatesStudySettings
    base: Any
    tokenizer: Any
    identity: ModelIdentity
    task: Task
    training: Task

    def rows_of(self, run: Run) -> Path:
        return self.folder / "runs" / run.name / "rows.parquet"

    def do(self, run: Run) -> None:
        if run.controller == "full":
            full = Session.of(self.base, self.tokenizer).full
            rows = self._rows(self.base, [_Measured("full", "none", None, None, full)])
        else:
            rows = self._rows(self.base, self._exits()) if run.controller == "exits" else self._trained(run)
        write_atomically(self.rows_of(run), lambda part: pq.write_table(rows, part))

    def _trained(self, run: Run) -> pa.Table:
        folder = self.rows_of(run).with_name("gates")
        options = {"settings": self.settings.of_gates(run), "identity": self.identity}
        result = train_gates(self.base, self.tokenizer, task=self.training, out=folder, **options)
        gates = TokenGates.from_pretrained(folder)
        # Merged, for an adapter's own small products would take as long as the layers that are skipped.
        model = _merged(self.base, folder, self.identity.name)
        about = (run.target, run.seed)
        depths = [
            _Measured(run.controller, mode, *about, self._depth(gates.policy(mode, run.seed or 0), f"{run.name}:{mode}"))
            for mode in GATE_MODES
        ]
        if self.settings.controls and run.controller == "hidden":
            # Chance at the rates of these very gates, on the weights that were trained with them.
            rates = Bernoulli(tuple(result.record["layer_rates"]), run.seed or 0)
            depths.append(_Measured("bernoulli", "sampled", *about, self._depth(rates, f"{run.name}:bernoulli")))
        if self.settings.controls and run.controller == "fixed":
            static = _static(result.record["layer_rates"], f"{run.name}:static")
            depths.append(_Measured("static", "none", *about, static))
        is_mapped = run.seed == 0 and run.target == self.settings.mapped_budget and run.controller in self.settings.inputs
        if is_mapped and self.settings.map_sequences:
            self._draw_maps(model, run, depths[: len(GATE_MODES)])
        return self._rows(model, depths)

    def _depth(self, policy: Any, name: str) -> TokenDepth:
        return TokenDepth(policy, count_layers(self.base), self.settings.key_values, name)

    def _exits(self) -> list[_Measured]:
        rows = training_rows(self.training, self.tokenizer, Session.of(self.base, self.tokenizer))
        texts = [(row.prompt_ids, row.response_ids) for row in rows if len(row.response_ids) > 1][: self.settings.exit_rows]
        found = []
        for measure in CONFIDENCES:
            exits = exit_thresholds(self.base, self.tokenizer, texts, measure, self.settings.budgets)
            for budget, policy in zip(self.settings.budgets, exits, strict=True):
                found.append(_Measured(measure, "none", budget, None, self._depth(policy, f"{measure}-{budget:g}")))
        return found

    def _rows(self, model: Any, depths: Sequence[_Measured]) -> pa.Table:
        # One folder for all runs: T's own answers, which agreement is taken on, are made once.
        measured = sweep(
            model,
            self.tokenizer,
            task=self.task,
            routes=[one.depth for one in depths],
            out=self.folder / "sweep",
            batch_size=self.settings.eval_batch_size,
            max_new_tokens=self.settings.max_new_tokens,
            fidelity_tokens=self.settings.fidelity_tokens,
            identity=self.identity,
            reference=self.base,
            reference_hash=self.identity.weights_hash,
        ).to_pylist()
        about = {one.depth.name: one.columns() for one in depths}
        return pa.Table.from_pylist([{**row, **about[row["route"]]} for row in measured], schema=schema_of(GATE_COLUMNS))

    def _draw_maps(self, model: Any, run: Run, depths: Sequence[_Measured]) -> None:
        examples = encode(self.task, self.tokenizer)[: self.settings.map_sequences]
        session = Session.of(model, self.tokenizer)
        ready = session.prefill(examples)
        for one in depths:
            assert isinstance(one.depth, TokenDepth)
            bound = one.depth.for_batch([example.id for example in examples])
            decoded = session.decode(bound, ready, self.settings.max_new_tokens)
            for example, tokens, ran in zip(examples, decoded.tokens, decoded.ran or (), strict=True):
                prompt = example.prompt_ids[-_MAPPED_PROMPT_TOKENS:]
                # The last layers ran for each token that was read; the last of an answer was only written.
                read = [*prompt, *tokens[:-1]]
                everything = [[1] * session.n_layers] * len(prompt)
                name = re.sub(r"[^\w.+-]+", "-", example.id)  # a row's own id may be a path
                GateMap(
                    **one.columns(),
                    n_layers=session.n_layers,
                    sequence_id=example.id,
                    tokens=tuple(self.tokenizer.decode([token]) for token in read),
                    is_prompt=(*[True] * len(prompt), *[False] * (len(tokens) - 1)),
                    ran=tuple(tuple(map(int, layers)) for layers in [*everything, *ran.tolist()]),
                ).save(self.folder / "maps" / f"{run.name}-{one.mode}-{name}.json")


def _merged(model: Any, folder: Path, label: str) -> Any:
    """A copy of the model with an adapter merged into its weights, which is no adapter's model any more."""
    return merged(with_adapter(copy.deepcopy(unwrap(model)), folder, label)).requires_grad_(False).eval()


def _static(rates: Sequence[float], name: str) -> Route:
    """The route of as many layers as the rates run in the mean: the layers that run most often."""
    n_run = max(1, round(sum(rates)))
    order = sorted(range(len(rates)), key=lambda layer: (-rates[layer], layer))
    return Route(tuple(sorted(order[:n_run])), len(rates), name)
