"""What a training step costs: a route of half the layers against all of them, and all of them against transformers' Trainer.

The promise: at 50% of the layers at most 0.65 of the full step, and within 10% of a plain Trainer otherwise. Forward and
backward pass of full fine-tuning on the same batch, the variants one after the other in every round; ratios are medians over
rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from typing import Any

import torch
from common import arguments, publish, seconds
from transformers import Trainer, TrainingArguments

import depthdial as dd
from depthdial.engine.session import Session
from depthdial.routes import Route
from depthdial.train.depth.routed import RoutedModel
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.depth.student import student
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import make_schedule
from depthdial.train.trainer import DepthTrainer, ScheduledPasses


def main() -> None:
    options = arguments(
        __doc__,
        "train.json",
        model="smollm2-135m",
        batch_size=4,
        prompt_tokens=64,
        response_tokens=64,
        repeats=7,
        method="full",
    )
    model, tokenizer = dd.load(options.model)
    session = Session.of(model, tokenizer)
    settings = FinetuneSettings(method=options.method, batch_size=options.batch_size)
    generator = torch.Generator().manual_seed(0)
    rows = [random_row(i, options, model.config.vocab_size, generator) for i in range(options.batch_size)]
    half = Route.parse("uls:50%", session.n_layers)
    steps = {
        "plain Trainer, all layers": plain_step(model, rows, settings),
        "full": _ours(model, session, rows, session.full, settings),
        "uls:50%": _ours(model, session, rows, half, settings),
        "uls:50%, prompt on the route": _ours(model, session, rows, half, replace(settings, prompt_depth="route")),
    }
    for step in steps.values():  # the first step pays for allocations
        step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(options.repeats)]

    def ratio(name: str, to: str) -> float:
        return statistics.median(times[name] / times[to] for times in rounds)

    table = [
        {
            "step": name,
            "layers": "half" if "50%" in name else "all",
            "median (s)": statistics.median(times[name] for times in rounds),
            "over full": ratio(name, "full"),
            "over plain Trainer": ratio(name, "plain Trainer, all layers"),
        }
        for name in steps
    ]
    publish(f"A training step of {options.model}, {options.method} fine-tuning", table, options)


def random_row(number: int, options: Any, vocabulary: int, generator: torch.Generator) -> TrainingRow:
    ids = torch.randint(vocabulary, (options.prompt_tokens + options.response_tokens,), generator=generator).tolist()
    return TrainingRow(str(number), tuple(ids[: options.prompt_tokens]), tuple(ids[options.prompt_tokens :]))


def trainer_arguments() -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(), report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=_on_cpu()
    )


def _on_cpu() -> bool:
    return not torch.cuda.is_available()


def _ours(model: Any, session: Session, rows: list[TrainingRow], route: Route, settings: FinetuneSettings) -> Any:
    trained = student(model, [route], settings, in_place=False).__enter__()
    schedule = make_schedule(rows, [route], settings)
    routed = RoutedModel(trained, prompt_depth=settings.prompt_depth)
    passes = ScheduledPasses(schedule.passes, rows, session.pad_token_id)
    trainer = DepthTrainer(routed, None, settings, [route], passes, trainer_arguments())
    return stepper(trainer, routed, trainer.train_dataset[0])


def plain_step(model: Any, rows: list[TrainingRow], settings: FinetuneSettings) -> Any:
    full = Route(tuple(range(model.config.num_hidden_layers)), model.config.num_hidden_layers)
    trained = student(model, [full], settings, in_place=False).__enter__()
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids] for row in rows])
    labels = ids.clone()
    labels[:, : len(rows[0].prompt_ids)] = -100
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    return stepper(Trainer(trained, trainer_arguments(), train_dataset=[inputs]), trained, inputs)


def stepper(trainer: Trainer, model: Any, inputs: dict[str, Any]) -> Any:
    trainer.current_gradient_accumulation_steps = 1
    trainer.optimizer = None  # what is timed is the pass, and an optimizer's step is the same for all
    number = iter(range(10**9))

    def step() -> None:
        batch = dict(inputs)
        if "group" in batch:
            batch["group"] = next(number)  # another batch each time, so that no prompt pass is saved
        model.zero_grad(set_to_none=True)
        trainer.training_step(model, batch)

    return step


if __name__ == "__main__":
    main()
