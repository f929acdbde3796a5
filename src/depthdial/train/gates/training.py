"""Training gates that decide token by token which layers run (arXiv 2410.20022, section 3), alone or with their backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from depthdial.data.tasks import Task, as_task
from depthdial.engine.session import Runner
from depthdial.files import read_json
from depthdial.hf.weights import weights_hash
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity
from depthdial.train.artefact import RECORD_FILE, is_finished, save_gates
from depthdial.train.compute import training_flops
from depthdial.train.depth.student import frozen, student
from depthdial.train.gates.budget import Budget, Price
from depthdial.train.gates.gated import GatedModel
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.trainer import GateTrainer
from depthdial.train.objective import Objective
from depthdial.train.rows import check_answers, training_rows
from depthdial.train.running import (
    FINAL,
    claim_run,
    is_main,
    own_chance,
    run_record,
    run_trainer,
    training_arguments,
    world_size,
)
from depthdial.train.schedule import Schedule, make_schedule
from depthdial.views.tokens.gates import GATES_FILE, GateBase, TokenGates
from depthdial.views.tokens.view import token_view


@dataclass(frozen=True)
class GateResult:
    """Gates that are trained.

    Attributes:
        folder: what `load_gates` takes.
        record: JSON-ready: settings, steps, seconds, FLOPs; by step the loss, the fraction of layers run and their price;
            how often each layer ran in the end.
    """

    folder: Path
    record: Mapping[str, Any]


def train_gates(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    out: Path | str,
    settings: GateSettings,
    name: str | None = None,
    identity: ModelIdentity | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> GateResult:
    """Train gates, and with them the backbone unless it is frozen.

    Prompts run every layer (unless `settings.prompt_depth` says otherwise), and every layer is computed for every token:
    what the gates save is saved afterwards.

    Args:
        model: the full model, such as one that `finetune` has made; it is not changed. For distillation it is the teacher.
        task: sequences to learn from; nothing that is measured later.
        out: folder for the result, its record and the checkpoints; a stopped run goes on there, exactly.
        name: what the model was loaded by.
        identity: the model's, where it is at hand; otherwise all weights are read once.
        trainer_options: further fields of transformers' TrainingArguments, such as report_to, bf16.

    Raises:
        InputError: for bad settings, rows or a model that cannot be routed by token, before anything trains; for a loss or
            weights that are not finite, and where a checkpoint cannot be written, with the last good checkpoint kept.
    """
    folder, runner = Path(out), Runner.of(model, tokenizer)
    options = dict(trainer_options or {})
    config = settings.config(runner.n_layers, runner.facts.width)
    identity = identity or ModelIdentity.of(model, name)
    gates = TokenGates(config)
    token_view(model, gates.policy("sampled"), key_values=settings.key_values)  # refuses what cannot be routed by token
    task = as_task(task, held_out=True)
    claim_run(folder, "train-gates.json", settings, identity, task)
    if is_finished(folder, GATES_FILE):
        return GateResult(folder, read_json(folder / RECORD_FILE, "training record"))
    rows = training_rows(
        task,
        tokenizer,
        runner,
        answers=check_answers(settings.answers),
        folder=folder / "answers",
        progress=progress and is_main(),
    )
    run = settings.run
    schedule = make_schedule(rows, [runner.full], run, world_size=world_size())
    with own_chance(settings.seed), _backbone(model, runner, settings) as trained:
        gated = GatedModel(trained, gates.to(runner.device), key_values=settings.key_values, prompt_depth=run.prompt_depth)
        objective = Objective(settings.distill, cross_entropy=settings.cross_entropy)
        arguments = training_arguments(runner, run, schedule, folder, options, logging_steps=1)
        trainer = GateTrainer(
            gated,
            runner.model if settings.distill else None,
            objective,
            _price(settings, gates, schedule),
            settings,
            schedule,
            rows,
            runner.pad_token_id,
            arguments,
        )
        run_trainer(trainer, folder, schedule, progress=progress)
        flops = training_flops(model_cost(model), schedule, rows, [runner.full], run)
        record = {
            "settings": asdict(replace(settings, learning_rate=run.rate)),
            **run_record(trainer, schedule, rows, task, flops, model if settings.backbone == "full" else None),
            "layer_rates": trainer.layer_rates(),
        }
        trainer.save_model(str(folder / FINAL))
        if trainer.is_world_process_zero():
            save_gates(folder, tokenizer, _finished(gates, trained, identity, settings, record), settings, record)
        trainer.accelerator.wait_for_everyone()
    return GateResult(folder, record)


def _price(settings: GateSettings, gates: TokenGates, schedule: Schedule) -> Price | Budget:
    if settings.target is None:
        return Price(settings.alpha or 0.0)
    share = len(gates.config.layers) / gates.config.n_layers
    runs = torch.tensor(float(settings.run_bias)).sigmoid().item()
    return Budget(settings.target, 1 - share + share * runs, round(settings.ramp * schedule.n_steps))


@contextmanager
def _backbone(model: Any, runner: Runner, settings: GateSettings) -> Iterator[Any]:
    if settings.backbone == "frozen":
        with frozen(model) as kept:
            yield kept
    else:
        with student(model, [runner.full], settings.run, in_place=False) as trained:
            yield trained


def _finished(
    gates: TokenGates, trained: Any, identity: ModelIdentity, settings: GateSettings, record: Mapping[str, Any]
) -> TokenGates:
    """The gates with what they are for: the model that was given or, where all of it was trained, the trained one."""
    gates.base = GateBase(identity.name, identity.weights_hash, identity.dtype)
    if settings.backbone == "full":
        dtype = str(trained.dtype).removeprefix("torch.")
        gates.base = GateBase(f"{identity.name} as trained beside them", weights_hash(trained), dtype)
    about = {"backbone": settings.backbone, "trained_on": identity.name, "settings": asdict(settings)}
    gates.about = {**about, "data": record["data"]}
    return gates
