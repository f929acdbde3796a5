"""Training gates that decide token by token which layers run (arXiv 2410.20022, section 3), alone or with their backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from depthdial.data.tasks import Task
from depthdial.engine.session import Session
from depthdial.hf.weights import weights_hash
from depthdial.measure.plan import ModelIdentity
from depthdial.train.depth.student import frozen, student
from depthdial.train.gates.budget import Budget, Price
from depthdial.train.gates.gated import GatedModel
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.trainer import PRICE_FILE, GateTrainer
from depthdial.train.running import Job, TrainingResult, run_training
from depthdial.train.timing import since_now
from depthdial.train.trainer import ScheduledPasses
from depthdial.views.tokens.gates import GATES_FILE, GateBase, GateConfig, TokenGates
from depthdial.views.tokens.view import token_view


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
) -> TrainingResult:
    """Train gates, and with them the backbone unless it is frozen.

    Prompts run every layer (unless `settings.run.prompt_depth` says otherwise), and every layer is computed for every token:
    what the gates save is saved afterwards.

    Args:
        model: the full model, such as one that `finetune` has made; it is not changed. For distillation it is the teacher.
        task: sequences to learn from; nothing that is measured later.
        out: folder for the result, its record and the checkpoints; a stopped run resumes there, exactly.
        name: what the model was loaded by.
        identity: the model's, where it is at hand; otherwise all weights are read once.
        trainer_options: further fields of transformers' TrainingArguments, such as report_to, bf16.

    Raises:
        InputError: for bad settings, rows or a model that cannot be routed by token, before anything trains; for a loss or
            weights that are not finite, and where a checkpoint cannot be written, with the last good checkpoint kept.

    Example:
        >>> settings = dd.GateSettings(target=0.6, backbone="frozen")
        >>> result = dd.train_gates(model, tokenizer, task=many, out=folder / "trained-gates", settings=settings)
    """
    session = Session.of(model, tokenizer)
    config = settings.config(session.n_layers, session.facts.width)
    identity = identity or ModelIdentity.of(model, name)
    gates = TokenGates(config)
    token_view(model, gates.policy("sampled"), key_values=settings.key_values)  # refuses what cannot be routed by token
    run, routes = settings.run, (session.full,)

    def trainer(trained: Any, passes: ScheduledPasses, arguments: Any) -> GateTrainer:
        own = gates.to(session.device)
        gated = GatedModel(trained, own, key_values=settings.key_values, prompt_depth=run.prompt_depth)
        price = _price(settings, config, arguments.max_steps)
        return GateTrainer(gated, session.model if run.distill else None, price, settings, passes, arguments)

    def finish(folder: Path, trained: Any, record: Mapping[str, Any]) -> None:
        # What they are for: the model that was given or, where all of it was trained, the trained one.
        gates.base = GateBase(identity.name, identity.weights_hash, identity.dtype)
        if settings.backbone == "full":
            dtype = str(trained.dtype).removeprefix("torch.")
            gates.base = GateBase(f"{identity.name} as trained beside them", weights_hash(trained), dtype)
        about = {"backbone": settings.backbone, "trained_on": identity.name, "settings": asdict(settings)}
        gates.about = {**about, "data": record["data"]}
        (folder / PRICE_FILE).unlink(missing_ok=True)
        gates.save_pretrained(folder)

    job = Job(
        *("train-gates.json", GATES_FILE, settings, run, routes),
        student=lambda: frozen(model) if settings.backbone == "frozen" else student(model, routes, run, in_place=False),
        trainer=trainer,
        told=lambda trainer, _: {"layer_rates": trainer.layer_rates()},
        finish=finish,
        usual={"logging_steps": 1},
    )
    given: dict[str, Any] = {"task": task, "out": out, "identity": identity, "options": trainer_options}
    return run_training(job, session, tokenizer, **given, progress=progress, clock=since_now())


def _price(settings: GateSettings, config: GateConfig, n_steps: int) -> Price | Budget:
    if settings.target is None:
        return Price(settings.alpha or 0.0)
    runs = torch.tensor(float(settings.run_bias)).sigmoid().item()
    share = len(config.layers) / config.n_layers
    return Budget(settings.target, 1 - share + share * runs, round(settings.ramp * n_steps))
