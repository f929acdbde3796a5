"""transformers' Trainer for gates and backbone together: two learning rates, and a price of layers kept in checkpoints."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from depthdial.files import read_json, write_json
from depthdial.train.gates.budget import Budget, Price
from depthdial.train.gates.gated import GatedModel, GatedOutput
from depthdial.train.gates.settings import GateSettings
from depthdial.train.objective import response_loss
from depthdial.train.trainer import BATCH_TENSORS, CarefulTrainer, ScheduledPasses, part_of

PRICE_FILE = "price.json"
# For the gates: with Adam's usual momentum a fraction runs past its goal for ten steps.
_ADAM: dict[str, Any] = {"betas": (0.5, 0.99), "eps": 1e-18}
# A power of two by which the gates' gradients are scaled, so that clipping by the norm of all gradients leaves the backbone
# what it would have without them; Adam takes no notice.
_SCALE = 2.0**-10
_LOWEST_RATE = 0.2
# Rates in the record are means over this number of last steps.
_LAST_STEPS = 10


class GateTrainer(CarefulTrainer):
    """Trains a GatedModel on a schedule; `price` is what layers cost in the loss."""

    def __init__(
        self,
        gated: GatedModel,
        teacher: Any,
        price: Price | Budget,
        settings: GateSettings,
        passes: ScheduledPasses,
        args: TrainingArguments,
    ) -> None:
        self.price, self.settings = price, settings
        self._batches: list[dict[str, torch.Tensor]] = []
        self._seen: dict[str, list[float]] = {}
        self._rates: list[torch.Tensor] = []
        super().__init__(gated, teacher, passes, args)
        self.add_callback(_StepEnd(self))
        for parameter in gated.gates.parameters():
            parameter.register_hook(lambda gradient: gradient * _SCALE)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tensors = {name: inputs[name] for name in BATCH_TENSORS}
        done = self.state.global_step / max(1, self.args.max_steps - 1)
        output: GatedOutput = model(**tensors, temperature=self.settings.temperature_at(min(done, 1.0)))
        chosen = tensors["response_mask"].bool()
        taught = self.teach(tensors, inputs["group"])
        taught = None if taught is None else taught[chosen]
        task = response_loss(self.settings.run, output.logits[chosen], tensors["response_ids"][chosen], taught)
        penalty = self.price.penalty(output.expected)
        loss = task + torch.where(output.n_routed > 0, penalty, torch.zeros_like(penalty))
        self.check_loss(loss)
        seen = {"task": task, "ran": output.ran, "expected": output.expected, "rates": output.rates, "n": output.n_routed}
        self._batches.append({name: value.detach() for name, value in seen.items()})
        return (loss, output.logits) if return_outputs else loss

    def end_step(self) -> None:
        """Move the price by what the optimizer step has seen, over all its batches and processes."""
        batches, self._batches = self._batches, []
        weights = torch.stack([one["n"] for one in batches]).float()
        names = ("ran", "expected", "rates")
        sums = [torch.stack([one[name] * n for one, n in zip(batches, weights, strict=True)]).sum(0) for name in names]
        task = torch.stack([one["task"] for one in batches]).mean()
        flat = torch.cat([task[None], weights.sum()[None], *(total.reshape(-1) for total in sums)])
        if self.args.world_size > 1:
            flat = self.accelerator.reduce(flat, "mean")
        noted = {"loss/task": float(flat[0]), "price": self.price.value}
        if flat[1] > 0:
            means = flat[2:] / flat[1]
            noted |= {"fraction": float(means[0]), "fraction/expected": float(means[1])}
            self._rates = [*self._rates[1 - _LAST_STEPS :], means[2:].cpu()]
            self.price.update(float(means[1]))
        for name, value in noted.items():
            self._seen.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """The task's loss, the fraction of layers run (drawn and expected) and the price of layers."""
        found = {name: sum(values) / len(values) for name, values in self._seen.items()}
        self._seen = {}
        return found

    def layer_rates(self) -> list[float]:
        """The share of response tokens that ran each layer in the last steps, L numbers."""
        config = self.inner_gates().config
        rates = [1.0] * config.n_layers
        if self._rates:
            for layer, rate in zip(config.layers, torch.stack(self._rates).mean(0).tolist(), strict=True):
                rates[layer] = rate
        return rates

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of Trainer's arguments, with the gates in a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        own = list(self.inner_gates().parameters())
        numbers = {id(parameter) for parameter in own}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in numbers]
        optimizer.add_param_group({"params": own, "lr": self.settings.gate_learning_rate, "weight_decay": 0.0, **_ADAM})
        return optimizer

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Trainer's schedule for the backbone, and the gates' own for the gates."""
        scheduler = super().create_scheduler(num_training_steps, *args, **kwargs)
        factors = getattr(scheduler, "lr_lambdas", None)
        if factors:
            warmup = self.args.get_warmup_steps(num_training_steps)
            held = self.settings.ramp * num_training_steps
            factors[-1] = lambda step: rate_factor(step, num_training_steps, warmup, held)
        return scheduler

    def write(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        if self.settings.backbone != "frozen":
            super().write(folder, state_dict)
        folder.mkdir(parents=True, exist_ok=True)
        self.inner_gates().save_weights(folder, part_of(state_dict, "gates."))
        rates = [one.tolist() for one in self._rates]
        write_json(folder / PRICE_FILE, {"price": asdict(self.price), "rates": rates})

    def read(self, folder: Path) -> None:
        if self.settings.backbone != "frozen":
            super().read(folder)
        self.inner_gates().load_weights(folder)
        document = read_json(folder / PRICE_FILE, "price")
        self.price = replace(self.price, **document["price"])
        self._rates = [torch.tensor(one) for one in document["rates"]]

    def inner_gates(self) -> Any:
        return self.accelerator.unwrap_model(self.model).gates


def rate_factor(step: int, n_steps: int, warmup: float, held: float) -> float:
    """The gates' learning rate at a step, as a share of its peak: held while the goal comes down, then falling to a fifth.

    Never to nothing, as the backbone's does: without a rate a budget cannot be held.
    """
    left = (n_steps - max(step, held)) / max(1.0, n_steps - held)
    return min(1.0, (step + 1) / (warmup + 1)) * (_LOWEST_RATE + (1 - _LOWEST_RATE) * min(1.0, max(0.0, left)))


class _StepEnd(TrainerCallback):
    """Trainer calls it after each optimizer step, before it logs and saves."""

    def __init__(self, trainer: GateTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.end_step()
