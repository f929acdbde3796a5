"""What training gates costs: a step of gates and backbone together against a plain Trainer step of the same backbone.

The promise: at least 80% of the plain step's tokens per second. Forward and backward pass on the same batch, the variants
one after the other in every round; ratios are medians over rounds.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from bench_train import plain_step, random_row, stepper, trainer_arguments
from common import arguments, publish, seconds

import depthdial as dd
from depthdial.engine.session import Session
from depthdial.train.depth.student import student
from depthdial.train.gates.budget import Price
from depthdial.train.gates.gated import GatedModel
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.trainer import GateTrainer
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import make_schedule
from depthdial.train.trainer import ScheduledPasses
from depthdial.views.tokens.gates import TokenGates


def main() -> None:
    options = arguments(
        __doc__,
        "train_gates.json",
        model="smollm2-135m",
        batch_size=4,
        prompt_tokens=64,
        response_tokens=64,
        repeats=7,
        backbone="lora",
        key_values="project",
    )
    model, tokenizer = dd.load(options.model)
    session = Session.of(model, tokenizer)
    generator = torch.Generator().manual_seed(0)
    rows = [random_row(i, options, model.config.vocab_size, generator) for i in range(options.batch_size)]
    plain = GateSettings(alpha=1.0, batch_size=options.batch_size, key_values=options.key_values, backbone=options.backbone)
    steps = {
        "plain Trainer": plain_step(model, rows, plain.run),
        "gates on the hidden state": _gated(model, session, rows, plain),
        "gates on the hidden state, MLP": _gated(model, session, rows, replace(plain, kind="mlp")),
        "gates on a fixed input": _gated(model, session, rows, replace(plain, input="fixed")),
    }
    for step in steps.values():  # the first step pays for allocations
        step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(options.repeats)]
    tokens = sum(row.n_tokens for row in rows)
    table = [
        {
            "step": name,
            "median (s)": statistics.median(times[name] for times in rounds),
            "tokens/s": tokens / statistics.median(times[name] for times in rounds),
            "tokens/s over plain": statistics.median(times["plain Trainer"] / times[name] for times in rounds),
        }
        for name in steps
    ]
    publish(f"A training step of gates on {options.model}, backbone: {options.backbone}", table, options)


def _gated(model: Any, session: Session, rows: list[TrainingRow], settings: GateSettings) -> Any:
    trained = student(model, [session.full], settings.run, in_place=False).__enter__()
    gates = TokenGates(settings.config(session.n_layers, model.config.hidden_size)).to(session.device)
    gated = GatedModel(trained, gates, key_values=settings.key_values)
    schedule = make_schedule(rows, [session.full], settings.run)
    passes = ScheduledPasses(schedule.passes, rows, session.pad_token_id)
    trainer = GateTrainer(gated, None, Price(settings.alpha or 0.0), settings, passes, trainer_arguments())
    step = stepper(trainer, gated, trainer.train_dataset[0])

    def whole() -> None:
        step()
        trainer.end_step()

    return whole


if __name__ == "__main__":
    main()
