"""The training loop of the scripts: one `train` over Accelerate, two functions around it.

Losses are nats per target token, weighted by tokens across micro-batches and processes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_qrnn.training.batching import Batch, BucketBatchSampler

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adam")


@dataclass
class LoopOptions:
    """How to optimise; every field is a flag of the training scripts."""

    max_steps: int = field(default=0, metadata={"help": "updates to make; 0 = by epochs"})
    epochs: float = field(default=10.0, metadata={"help": "passes over the data without max_steps"})
    max_minutes: float = field(
        default=0.0,
        metadata={
            "help": "stop after so many minutes of training, and decay until then; 0 = never"
        },
    )
    max_tokens: int = field(
        default=4096, metadata={"help": "padded tokens per side in a batch of similar lengths"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches per update"})
    optimizer: str = field(default="adamw", metadata={"help": "adamw or adam"})
    learning_rate: float = field(default=1e-3, metadata={"help": "highest learning rate"})
    schedule: str = field(
        default="cosine", metadata={"help": "decay after warm-up: cosine, linear (to 0), constant"}
    )
    warmup_steps: int = field(default=0, metadata={"help": "updates of linear warm-up from 0"})
    adam_beta1: float = field(default=0.9, metadata={"help": "decay of the first moment"})
    adam_beta2: float = field(default=0.999, metadata={"help": "decay of the second moment"})
    adam_epsilon: float = field(
        default=1e-8, metadata={"help": "added to the second moment's root"}
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of matrices; not of biases, norms and embeddings"}
    )
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "rescale gradients above this norm; 0 = never"}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the target spread over the vocabulary"}
    )
    log_every: int = field(default=20, metadata={"help": "updates between lines of metrics.jsonl"})
    eval_every: int = field(
        default=500, metadata={"help": "updates between validations; one comes at the end too"}
    )

    def __post_init__(self) -> None:
        least = {
            "max_steps": 0, "epochs": 0, "max_minutes": 0, "max_tokens": 1, "warmup_steps": 0,
            "gradient_accumulation_steps": 1, "learning_rate": 0, "weight_decay": 0,
            "max_grad_norm": 0, "log_every": 1, "eval_every": 1,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                value = getattr(self, name)
                raise ValueError(f"`{name}` must be at least {bound}, but is {value}.")
        for name, allowed in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                choices, value = ", ".join(allowed), getattr(self, name)
                raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"`label_smoothing` must be in [0, 1), but is {self.label_smoothing}.")


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        step: Updates made.
        epoch: Passes begun, from 0.
        seconds: Time spent training, validation not counted.
        best: Best validation score so far, or None.
    """

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    best: float | None = None


def make_optimizer(model: torch.nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay on matrices only."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (matrices if is_matrix else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )


def learning_rate_factor(options: LoopOptions, step: int, progress: float) -> float:
    """Share of the highest learning rate at update `step` (from 0), `progress` in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.schedule == "constant":
        return warmup
    left = 1.0 - min(1.0, progress)
    decay = left if options.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return warmup * decay


class Trainer:
    """Trains a sequence-to-sequence model on batches of similar lengths.

    Args:
        model: The model.
        loader: Batches of one epoch, planned by `sampler`.
        sampler: Plans an epoch.
        options: How to optimise.
        accelerator: Device, precision and processes.
        chars_per_token: Source and target characters per token, to report bits per character and
            characters per second.
        log: Called with every record for metrics.jsonl.
        validate: Called with the step; returns the validation score (higher is better) and its
            record.
        save_best: Called when the validation score improved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loader: DataLoader[Batch],
        sampler: BucketBatchSampler,
        options: LoopOptions,
        accelerator: Accelerator,
        *,
        chars_per_token: tuple[float, float],
        log: Callable[[dict[str, Any]], None],
        validate: Callable[[int], tuple[float, dict[str, Any]]],
        save_best: Callable[[], None],
    ) -> None:
        self.options, self.accelerator = options, accelerator
        self.sampler, self.loader = sampler, loader
        self.chars_per_token = chars_per_token
        self.log, self.validate, self.save_best = log, validate, save_best
        self.state = TrainState()
        optimizer = make_optimizer(model, options)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.max_steps = options.max_steps or math.ceil(
            options.epochs * math.ceil(len(sampler) / options.gradient_accumulation_steps)
        )

    def progress(self) -> float:
        """Share of the budget used: of updates, or of minutes where that is more."""
        used = self.state.step / max(1, self.max_steps)
        if self.options.max_minutes > 0:
            used = max(used, self.state.seconds / (60.0 * self.options.max_minutes))
        return used

    def train(self) -> TrainState:
        """Train to the end of the budget, validating on the way and at the end."""
        meter = _Meter()
        bar = tqdm(
            total=self.max_steps,
            desc="training",
            unit="update",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not self.accelerator.is_local_main_process,
        )
        started = time.monotonic()
        for group in self._groups():
            total = self._share(group, time.monotonic() - started)
            started = time.monotonic()
            self._update(group, total, meter)
            bar.update()
            finished = self.progress() >= 1.0
            if self.state.step % self.options.log_every == 0 or finished:
                record = self._record(meter)
                self.log(record)
                bar.set_postfix_str(self._summary(record))
                meter = _Meter()
            if self.state.step % self.options.eval_every == 0 or finished:
                self._evaluate()
                started = time.monotonic()
            if finished:
                break
        bar.close()
        return self.state

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of each update, epoch after epoch."""
        size = self.options.gradient_accumulation_steps
        while True:
            self.sampler.set_epoch(self.state.epoch)
            group: list[Batch] = []
            for batch in self.loader:
                group.append(batch)
                if len(group) == size:
                    yield group
                    group = []
            if group:
                yield group
            self.state.epoch += 1

    def _share(self, group: list[Batch], seconds: float) -> float:
        """Target tokens of `group` over all processes; adds their mean time to the state's.

        Processes that measured alone would end, and decay the learning rate, at different updates.
        """
        own = sum(batch.num_target_tokens for batch in group if not batch.is_filler)
        device = self.accelerator.device
        sums = self.accelerator.reduce(torch.tensor([own, seconds], device=device), "sum").tolist()
        self.state.seconds += sums[1] / self.accelerator.num_processes
        return float(sums[0])

    def _update(self, group: list[Batch], total: float, meter: _Meter) -> None:
        """One update from the batches of `group`, every one of `total` target tokens alike."""
        options, accelerator = self.options, self.accelerator
        self.model.train()
        for index, batch in enumerate(group):
            # Gradients are averaged over processes and the sum is wanted.
            weight = 0.0 if batch.is_filler else float(accelerator.num_processes)
            inputs = {name: x.to(accelerator.device) for name, x in batch.inputs.items()}
            is_last = index == len(group) - 1
            with accelerator.autocast(), _synced(accelerator, self.model, is_last):
                output = self.model(
                    **inputs, num_items_in_batch=total, label_smoothing=options.label_smoothing
                )
                accelerator.backward(output.loss * weight)
            meter.add(batch, _negative_log_likelihood(output, inputs["labels"], total, options))
        if options.max_grad_norm > 0:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), options.max_grad_norm)
            meter.grad_norm = float(norm)
        meter.learning_rate = options.learning_rate * learning_rate_factor(
            options, self.state.step, self.progress()
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = meter.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1

    def _evaluate(self) -> None:
        score, record = self.validate(self.state.step)
        improved = self.state.best is None or score > self.state.best
        common = {"kind": "valid", "step": self.state.step, "seconds": self.state.seconds}
        self.log({**common, **record, "is_best": improved})
        if improved:
            self.state.best = score
            self.save_best()

    def _record(self, meter: _Meter) -> dict[str, Any]:
        source, target = self.chars_per_token
        loss = meter.nats / max(1, meter.target_tokens)
        seconds = time.monotonic() - meter.started
        chars = source * meter.source_tokens + target * meter.target_tokens
        return {
            "kind": "train",
            "step": self.state.step,
            "epoch": self.state.epoch,
            "loss": loss,
            "bits_per_char": loss / math.log(2) / target,
            "learning_rate": meter.learning_rate,
            "grad_norm": meter.grad_norm,
            "chars_per_second": chars / seconds * self.accelerator.num_processes,
            "padding": 1.0 - meter.real / max(1, meter.padded),
            "seconds": self.state.seconds,
        }

    def _summary(self, record: dict[str, Any]) -> str:
        left = self.state.seconds * (1.0 / max(1e-9, self.progress()) - 1.0)
        return (
            f"loss {record['loss']:.3f}, {record['bits_per_char']:.3f} bits/char, "
            f"{record['chars_per_second']:.0f} chars/s, {max(0.0, left) / 60:.1f} min left"
        )


@dataclass
class _Meter:
    """Sums since the last line of the log."""

    started: float = field(default_factory=time.monotonic)
    nats: float = 0.0
    source_tokens: int = 0
    target_tokens: int = 0
    real: int = 0
    padded: int = 0
    grad_norm: float = 0.0
    learning_rate: float = 0.0

    def add(self, batch: Batch, nats: float) -> None:
        if batch.is_filler:
            return
        self.nats += nats
        self.source_tokens += batch.num_source_tokens
        self.target_tokens += batch.num_target_tokens
        self.real += batch.num_source_tokens + batch.num_target_tokens
        self.padded += batch.inputs["input_ids"].numel() + batch.inputs["labels"].numel()


def _synced(accelerator: Accelerator, model: torch.nn.Module, is_last: bool) -> Any:
    """Gradients travel between processes with the last batch of an update only."""
    return torch.enable_grad() if is_last else accelerator.no_sync(model)


def _negative_log_likelihood(
    output: Any, labels: torch.Tensor, total: float, options: LoopOptions
) -> float:
    """Nats of a batch without label smoothing, which the loss itself contains."""
    if options.label_smoothing == 0.0:
        return float(output.loss.detach()) * total
    logits = output.logits.detach().float().flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum"))


@torch.no_grad()
def mean_loss(model: PreTrainedModel, loader: DataLoader[Batch], device: torch.device) -> float:
    """Negative log-likelihood of all targets, nats per target token."""
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    for batch in loader:
        inputs = {name: x.to(device) for name, x in batch.inputs.items()}
        nats += float(model(**inputs).loss) * batch.num_target_tokens
        tokens += batch.num_target_tokens
    model.train(was_training)
    return nats / max(1, tokens)
