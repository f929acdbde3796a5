"""transformers' Trainer, fed with a schedule of routed passes.

torchrun, accelerate, FSDP, mixed precision, checkpoints and reporting are Trainer's own; what is added is which route a pass
runs, what it is compared with, and that a checkpoint is either whole or not there.
"""

from __future__ import annotations

import math
import operator
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from depthdial.engine.prefill import left_padded
from depthdial.engine.teacher_forcing import right_padded, whole_logits
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.load import quiet_transformers
from depthdial.progress import Advance
from depthdial.routes import Route
from depthdial.train.depth.routed import RoutedModel
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.objective import response_loss
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import MicroBatch, Schedule
from depthdial.train.timing import KeepTime, TimeBudget, anneal_by_time

# What a batch holds of tokens.
BATCH_TENSORS = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")

_STATE = "trainer_state.json"  # which Trainer writes last
_RECENT_LOSSES = 30  # passes that the loss shown is a mean of
# In the words of safetensors and of torch's zip writer.
_DISK_TROUBLE = ("no space", "unexpected pos", "disk", "quota", "read-only", "permission", "i/o error", "file write failed")


class ScheduledPasses(Dataset):
    """The passes of a schedule as tensors; Trainer takes them one at a time, in order."""

    def __init__(self, schedule: Sequence[MicroBatch], rows: Sequence[TrainingRow], pad_token_id: int) -> None:
        self._schedule, self._rows, self._pad = schedule, rows, pad_token_id

    def __len__(self) -> int:
        return len(self._schedule)

    def __getitem__(self, number: int) -> dict[str, Any]:
        one = self._schedule[number]
        rows = [self._rows[i] for i in one.rows]
        prompt_ids, prompt_mask = left_padded([row.prompt_ids for row in rows], self._pad, "cpu")
        response_ids, response_mask = right_padded([row.response_ids for row in rows], self._pad, "cpu")
        if response_ids.shape[1] == 1:  # a route needs a second token to predict
            response_ids = torch.nn.functional.pad(response_ids, (0, 1), value=self._pad)
            response_mask = torch.nn.functional.pad(response_mask, (0, 1))
        tensors = zip(BATCH_TENSORS, (prompt_ids, prompt_mask, response_ids, response_mask), strict=True)
        return {**dict(tensors), "route": one.route, "group": one.group}


class CarefulTrainer(Trainer):
    """What all training here has in common: batches in a fixed order, checkpoints that are whole, weights that are finite.

    Args:
        model: a module with what is saved in its attribute `model`.
        teacher: the untouched full model, for distillation; never trained. None without.
        passes: one batch each, in order: see `ScheduledPasses`.
    """

    def __init__(self, model: Any, teacher: Any, passes: Dataset, args: TrainingArguments) -> None:
        self.teacher = teacher
        self._taught: tuple[int, torch.Tensor] | None = None
        self._before_sec = self._started = 0.0
        self._recent_losses: deque[float] = deque(maxlen=_RECENT_LOSSES)
        self.budget: TimeBudget | None = None
        self._keeper: KeepTime | None = None
        a_pass_is_a_batch = operator.itemgetter(0)
        super().__init__(model=model, args=args, train_dataset=passes, data_collator=a_pass_is_a_batch)
        for printer in [c for c in self.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"]:
            self.remove_callback(printer)

    def means(self) -> dict[str, float]:
        """What a log entry says beside the loss: means since the entry before."""
        raise NotImplementedError

    def check_loss(self, loss: torch.Tensor, what: str = "loss") -> None:
        """InputError unless a loss is finite; `what` names it."""
        value = loss.item()  # waits for the device, once
        self._recent_losses.append(value)
        if not math.isfinite(value):
            raise InputError(
                f"The {what} is {value} at step {self.state.global_step + 1}: lower the learning rate or train in "
                "float32; the last good checkpoint is kept."
            )

    @property
    def recent_loss(self) -> float | None:
        """The mean loss of the last passes of this process; None before the first one."""
        return sum(self._recent_losses) / len(self._recent_losses) if self._recent_losses else None

    def keep_time(self, budget: TimeBudget) -> None:
        """Follow a time budget."""
        self.budget, self._keeper = budget, KeepTime(budget, self._agree)
        self.add_callback(self._keeper)

    @property
    def has_time(self) -> bool:
        """Whether a step fits into the budget now; all processes go by the first one's clock."""
        return self.budget is None or bool(self._agree([self.budget.has_room])[0])

    def _agree(self, values: Sequence[float]) -> Sequence[float]:
        """The values of the first process."""
        if self.args.world_size == 1:
            return values
        told: Any = broadcast(torch.tensor([float(one) for one in values], dtype=torch.float64, device=self.args.device))
        return told.tolist()

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's schedule of the learning rate, by steps or, with a budget, by time where that is further."""
        scheduler = super().create_scheduler(*args, **kwargs)
        if self.budget is not None and scheduler is not None:
            anneal_by_time(scheduler, self.budget)
        return scheduler

    def stand_at(self, checkpoint: Path) -> None:
        """Be where a checkpoint was, without training on."""
        self.state = TrainerState.load_from_json(str(checkpoint / _STATE))
        self._before_sec, self._started = _trained_sec(checkpoint), time.perf_counter()
        self.read(checkpoint)
        if self._keeper is not None:
            self._keeper.on_train_begin(self.args, self.state, self.control)

    def teach(self, tensors: dict[str, torch.Tensor], group: int) -> torch.Tensor | None:
        """The teacher's logits on a batch, computed once for all its routes; None without a teacher."""
        if self.teacher is None:
            return None
        if self._taught is None or self._taught[0] != group:
            self._taught = None
            with torch.no_grad():
                self._taught = (group, whole_logits(self.teacher, **tensors))
        return self._taught[1]

    def write(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Save what is trained; `state_dict` holds all of it where the weights are in shards."""
        # The model inside, so that a checkpoint is an adapter or a model that anything loads.
        save_model(self.inner(), folder, part_of(state_dict, "model."))

    def read(self, folder: Path) -> None:
        """Put back what `write` has saved."""
        load_model(self.inner(), folder)

    def inner(self) -> Any:
        return self.accelerator.unwrap_model(self.model).model

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self._before_sec = _trained_sec(Path(resume_from_checkpoint))
        self._started = time.perf_counter()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def elapsed_sec(self) -> float:
        """Seconds trained in all; what a run that was stopped did after its last log entry is not in it."""
        return self._before_sec + time.perf_counter() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `means`, and the seconds trained in all, stops left out."""
        if "loss" in logs:
            logs |= self.means() | {"elapsed_sec": self.elapsed_sec}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        broken = next((name for name, p in trained if not torch.isfinite(p).all()), None)
        if broken is not None:
            raise InputError(
                f"The weight {broken} is not finite after step {self.state.global_step}: lower the learning rate; the last "
                "good checkpoint is kept."
            )
        with refusing_full_disk(self.state.global_step, str(self.args.output_dir)):
            if self.args.should_save:
                count_future_as_old(Path(str(self.args.output_dir)))
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Without Trainer's own pickled arguments.
        if self.args.should_save:
            self.write(Path(output_dir or str(self.args.output_dir)), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.read(Path(resume_from_checkpoint))


class DepthTrainer(CarefulTrainer):
    """Trains a RoutedModel on a schedule, whose indices `routes` follow."""

    def __init__(
        self,
        routed: RoutedModel,
        teacher: Any,
        settings: FinetuneSettings,
        routes: Sequence[Route],
        passes: ScheduledPasses,
        args: TrainingArguments,
    ) -> None:
        self.settings, self.routes = settings, routes
        self._losses: dict[int, list[torch.Tensor]] = {}
        super().__init__(routed, teacher, passes, args)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        route, group = self.routes[inputs["route"]], inputs["group"]
        tensors = {name: inputs[name] for name in BATCH_TENSORS}
        logits = model(**tensors, layers=route.layers, group=group)
        first = tensors["response_ids"].shape[1] - logits.shape[1]
        chosen = tensors["response_mask"][:, first:].bool()
        if not chosen.any():  # all responses end with the token that the prompt predicts
            return logits.sum() * 0.0
        taught = self.teach(tensors, group)
        taught = None if taught is None else taught[:, first:][chosen]
        loss = response_loss(self.settings, logits[chosen], tensors["response_ids"][:, first:][chosen], taught)
        self.check_loss(loss, f"loss on route {route.name!r}")
        self._losses.setdefault(inputs["route"], []).append(loss.detach())
        return (loss, logits) if return_outputs else loss

    def means(self) -> dict[str, float]:
        """The loss of each route, over the passes of all processes."""
        told = torch.zeros(len(self.routes), 2, dtype=torch.float64, device=self.args.device)
        for i, seen in self._losses.items():
            told[i, 0], told[i, 1] = torch.stack(seen).double().sum(), len(seen)
        self._losses = {}
        sums: Any = self.accelerator.reduce(told)
        return {f"loss/{self.routes[i].name}": (total / n).item() for i, (total, n) in enumerate(sums) if n}


class ProgressSteps(TrainerCallback):
    """Moves the one progress bar, also over steps that an earlier run has done; says loss, minutes and tokens beside it."""

    def __init__(self, trainer: CarefulTrainer, schedule: Schedule, routes: Sequence[Route], advance: Advance) -> None:
        self._trainer, self._schedule, self._advance = trainer, schedule, advance
        self._tokens = {route.name: 0 for route in routes}
        self._names = list(self._tokens)
        self._done, self._n_passes = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        n_passes = self._schedule.n_passes(state.global_step)
        for one in self._schedule.passes[self._n_passes : n_passes]:
            self._tokens[self._names[one.route]] += one.n_tokens
        self._n_passes = n_passes
        budget, done = self._trainer.budget, float(state.global_step)
        if budget is not None:
            done = max(done, budget.share * budget.n_steps)
        self._advance(done - self._done, self._note)
        self._done = done

    def _note(self) -> str:
        loss, budget = self._trainer.recent_loss, self._trainer.budget
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        if budget is not None and budget.max_sec < math.inf:
            used, limit = budget.used_sec / 60, budget.max_sec / 60
            parts.append(f"{used:.1f} of {limit:.3g} minutes used, {max(0.0, limit - used):.1f} left")
        parts.append("tokens " + ", ".join(f"{name} {n:,}" for name, n in self._tokens.items()))
        return "; ".join(parts)


class LeaveLatest(TrainerCallback):
    """Calls `leave` with the folder of each checkpoint, in the process that writes."""

    def __init__(self, leave: Callable[[Path], object]) -> None:
        self._leave = leave

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            with refusing_full_disk(state.global_step, args.output_dir):
                self._leave(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def count_future_as_old(folder: Path) -> None:
    """Date back the checkpoints of a folder that were written before the machine's clock was set back.

    Trainer removes those with the oldest dates, and would remove the one that it has just written.
    """
    for path in folder.glob("checkpoint-*"):
        if path.stat().st_mtime > time.time():
            os.utime(path, (0, 0))


@contextmanager
def refusing_full_disk(step: int, folder: str) -> Iterator[None]:
    """InputError for a checkpoint that cannot be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, OSError) and not any(word in str(error).lower() for word in _DISK_TROUBLE):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise InputError(
            f"The checkpoint of step {step} cannot be written to {folder} ({reason}): "
            "make room and run the same command, which goes on from the checkpoint before it."
        ) from error


def save_model(model: Any, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    # The embeddings are never adapted, and asking whether they changed would ask the Hub.
    options: dict[str, Any] = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state_dict, **options)


def load_model(model: Any, folder: Path) -> None:
    """Put the weights of a folder that `save_model` wrote into the model."""
    from safetensors.torch import load_file

    device = next(model.parameters()).device
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors", device=str(device)))
        return
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError(f"The checkpoint {folder} has no weights: delete it, and the one before it is taken.")
    for file in files:
        # Not strict: tied weights are written once, and a large model is in several files.
        model.load_state_dict(load_file(file, device=str(device)), strict=False)


def part_of(state_dict: dict[str, Any] | None, prefix: str) -> dict[str, Any] | None:
    """The entries of a state dict under a prefix, without it; None for None."""
    if state_dict is None:
        return None
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _trained_sec(checkpoint: Path) -> float:
    log = read_json(checkpoint / _STATE, "training state")["log_history"]
    return max((entry.get("elapsed_sec", 0.0) for entry in log), default=0.0)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; halves, which a run that was killed has left, are deleted."""
    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            step = read_json(path / _STATE, "training state")["global_step"]
            whole.append((int(step), path))
        except (InputError, KeyError, TypeError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return max(whole)[1] if whole else None
