"""The training loop of the scripts: one `train` over Accelerate, two functions around it.

Losses are nats per target token, weighted by tokens across micro-batches and processes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_qrnn.data.batching import Batch, EpochPlan

from . import run_state as snapshot
from .best import Standing, best_standing
from .checkpoint import (
    Checkpoint,
    CheckpointFolder,
    average_weights,
    hash_tensors,
    read_checkpoint,
    read_marker,
)
from .clock import Stopwatch
from .identity import compare_identity
from .meter import Meter, peak_memory
from .options import check_at_least
from .processes import Processes
from .stopping import (
    DivergenceError,
    InterruptionError,
    Signals,
    Trouble,
    Watch,
    diverged,
    last_good,
)

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adam")
AVERAGES = ("none", "last", "best")


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
    patience: int = field(
        default=0, metadata={"help": "stop after so many validations without a best; 0 = never"}
    )
    loss_limit: float = field(
        default=5.0,
        metadata={"help": "stop where a loss passes so many times ln(vocabulary); 0 = never"},
    )
    save_every: int = field(
        default=1000, metadata={"help": "updates between checkpoints; 0 = no checkpoints at all"}
    )
    keep_last: int = field(default=2, metadata={"help": "newest checkpoints to keep"})
    keep_best: int = field(
        default=1, metadata={"help": "best checkpoints to keep; written after validations"}
    )
    average: str = field(
        default="none",
        metadata={"help": "at the end try the mean of the kept checkpoints: none, last, best"},
    )

    def __post_init__(self) -> None:
        least = {
            "max_steps": 0, "epochs": 0, "max_minutes": 0, "max_tokens": 1, "warmup_steps": 0,
            "gradient_accumulation_steps": 1, "learning_rate": 0, "weight_decay": 0,
            "adam_epsilon": 0, "max_grad_norm": 0, "log_every": 1, "eval_every": 1, "patience": 0,
            "loss_limit": 0, "save_every": 0, "keep_last": 1, "keep_best": 0,
        }  # fmt: skip
        check_at_least(self, least)
        choices_of = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "average": AVERAGES}
        for name, allowed in choices_of.items():
            if getattr(self, name) not in allowed:
                choices, value = ", ".join(allowed), getattr(self, name)
                raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")
        for name in ("label_smoothing", "adam_beta1", "adam_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), but is {getattr(self, name)}.")

    def shaping(self) -> dict[str, Any]:
        """The options that shape every update: a resumed run must have the same."""
        free = {"max_steps", "epochs", "max_minutes", "log_every", "eval_every", "patience"}
        free |= {"loss_limit", "save_every", "keep_last", "keep_best", "average"}
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass
class TrainState:
    """Where training stands; a checkpoint holds it.

    Attributes:
        step: Updates made.
        epoch: Passes begun, from 0.
        batch: Batches of this pass already used.
        seconds: Time spent training, validation not counted.
        best: Best validation score so far, higher is better, or None.
        best_loss: Validation loss of that model.
        best_by: The order that found it (best.py).
        since_best: Validations since then.
        finished: Why training ended: "budget", "patience", or "" while it goes on.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_loss: float | None = None
    best_by: str = ""
    since_best: int = 0
    finished: str = ""


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
            record, the same on every process. The record's "loss" orders equal scores.
        save_best: Called on every process when a model is the best so far.
        checkpoints: Where checkpoints go; None = nowhere.
        identity: What a checkpoint must have been written with for this run to go on from it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loader: Iterable[Batch],
        sampler: EpochPlan,
        options: LoopOptions,
        accelerator: Accelerator,
        *,
        chars_per_token: tuple[float, float],
        log: Callable[[dict[str, Any]], None],
        validate: Callable[[int], tuple[float, dict[str, Any]]],
        save_best: Callable[[], None],
        checkpoints: CheckpointFolder | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.accelerator = options, accelerator
        self.sampler, self.loader = sampler, loader
        self.chars_per_token = chars_per_token
        self.log, self.validate, self.save_best = log, validate, save_best
        self.checkpoints = checkpoints if options.save_every > 0 else None
        self.state, self.meter = TrainState(), Meter()
        self.processes = Processes(accelerator)
        self.identity = {"world_size": self.processes.count, **(identity or {})}
        limit = options.loss_limit * math.log(max(2, model.config.vocab_size))
        self.watch = Watch(limit if limit > 0 else math.inf)
        self._trouble: Trouble | None = None
        self._interrupted = False
        self._found: Standing | None = None  # of the weights as they are now, if validated
        config: Any = type(model.config)()
        self._defaults = {**LoopOptions().shaping(), "model": config.to_diff_dict()}
        optimizer = make_optimizer(model, options)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.max_steps = options.max_steps or math.ceil(
            options.epochs * math.ceil(len(sampler) / options.gradient_accumulation_steps)
        )

    def progress(self) -> float:
        """Share of the budget used: of updates, or of minutes where that is more."""
        used = self.state.step / self.max_steps if self.max_steps > 0 else 1.0
        if self.options.max_minutes > 0:
            used = max(used, self.state.seconds / (60.0 * self.options.max_minutes))
        return used

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, exactly: weights, optimiser, random numbers, place in the data.

        Raises:
            CheckpointError: If it is not what was written.
            ValueError: If it belongs to another run (names what differs).
        """
        checkpoint = self.processes.together(lambda: self._read_own(path))
        snapshot.set_weights(self.model, checkpoint.tensors["model"])
        snapshot.set_optimizer_tensors(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        own = f"{self.processes.rank}/"
        self.state = TrainState(**checkpoint.state["train"])
        marker = read_marker(path)
        if marker["score"] is not None:
            self._found = Standing(marker["score"], marker.get("loss"))
        self.meter = Meter.of(checkpoint.state["meters"][self.processes.rank])
        mine = {
            name.removeprefix(own): tensor
            for name, tensor in checkpoint.tensors["random"].items()
            if name.startswith(own)
        }
        self._settle_buckets()
        snapshot.set_random_state(mine, self.accelerator.device)

    def _read_own(self, path: Path) -> Checkpoint:
        checkpoint = read_checkpoint(path)
        compare_identity(self.identity, checkpoint.state["identity"], self._defaults, path)
        return checkpoint

    def _settle_buckets(self) -> None:
        """A backward pass that changes nothing, for sums over processes to add in one order.

        DDP puts gradients into buckets anew after its first backward pass, and with three or more
        processes the order of an addition depends on the bucket. The run that was not interrupted
        had its first pass long ago.
        """
        if self.processes.count == 1:
            return
        self.sampler.set_epoch(self.state.epoch)
        batch = next(iter(self.loader))
        inputs = {name: x.to(self.accelerator.device) for name, x in batch.inputs.items()}
        self.model.train()
        with self.accelerator.autocast():
            output = self.model(**inputs, num_items_in_batch=1)
            self.accelerator.backward(output.loss)
        self.optimizer.zero_grad()

    def train(self) -> TrainState:
        """Train to the end of the budget, validating on the way and at the end.

        Raises:
            InterruptionError: After SIGTERM or SIGINT, with a checkpoint saved.
            DivergenceError: If a loss or gradient is not finite, or a loss too large.
            CheckpointError: If a checkpoint cannot be written.
        """
        state, ended = self.state, self._ended()
        if state.finished and ended and state.best is not None:
            self._try_average()
            return state
        state.finished = ended
        bar = tqdm(
            total=self.max_steps,
            initial=state.step,
            desc="training",
            unit="update",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not self.accelerator.is_local_main_process,
        )
        with Signals() as signals, bar, Stopwatch() as clock:
            if ended:  # resumed where no update is left: what follows the last one is
                self._after_update(bar)
            lap = 0.0
            for group in () if ended else self._groups():
                total = self._share(group, lap, signals.received)
                self._update(group, total, self.meter)
                state.batch += len(group)
                bar.update()
                state.finished = self._ended()
                if self._is_due() or self.accelerator.device.type == "cpu":
                    self._look()  # waits for a GPU: its time is this update's
                lap = clock.take()
                self.meter.seconds += lap
                with clock.held():
                    self._after_update(bar)
                if state.finished or self._interrupted:
                    break
        if self._interrupted:
            newest = self.checkpoints.newest() if self.checkpoints else None
            raise InterruptionError(state.step, newest)
        self._try_average()
        return state

    def weights_hash(self) -> str:
        """SHA-256 of all weights as they are now."""
        return hash_tensors(snapshot.full_weights(self.model))

    def _ended(self) -> str:
        """Why there is no update left to make: "budget", "patience", or "" where there is."""
        if self.progress() >= 1.0:
            return "budget"
        patience = self.options.patience
        return "patience" if 0 < patience <= self.state.since_best else ""

    def _is_due(self) -> bool:
        """Whether anything but the next update follows this one."""
        step, options = self.state.step, self.options
        every = (options.log_every, options.eval_every, options.save_every or step + 1)
        return bool(self.state.finished) or any(step % number == 0 for number in every)

    def _after_update(self, bar: tqdm[Any]) -> None:
        """Log, validate and save where due."""
        state, options = self.state, self.options
        is_last = bool(state.finished)
        if (state.step % options.log_every == 0 or is_last) and self.meter.seconds > 0:
            record = self._record()
            self._log(record)
            bar.set_postfix_str(self._summary(record))
            self.meter = Meter()
        if state.step % options.eval_every == 0 or is_last:
            self._stop_if_diverged()
            if self._found is None or state.best is None:
                self._found = self._evaluate()
            state.finished = state.finished or self._ended()
        saves = options.save_every > 0 and state.step % options.save_every == 0
        if self.checkpoints is not None and (
            saves
            or state.finished
            or self._interrupted
            or (self._found is not None and self._is_among_best(self._found))
        ):
            self._save(self._found)

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of each update, epoch after epoch, from where the state stands."""
        size = self.options.gradient_accumulation_steps
        while True:
            self.sampler.set_epoch(self.state.epoch, start=self.state.batch)
            group: list[Batch] = []
            for batch in self.loader:
                group.append(batch)
                if len(group) == size:
                    yield group
                    group = []
            if group:
                yield group
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def _share(self, group: list[Batch], seconds: float, interrupted: bool) -> float:
        """Target tokens of `group` over all processes; what all must know goes the same way.

        Processes that measured time alone would end, and decay the learning rate, at different
        updates; and a signal or a loss that diverged may reach one of them only.
        """
        own = sum(batch.num_target_tokens for batch in group if not batch.is_filler)
        each = [0.0] * self.processes.count
        each[self.processes.rank] = seconds
        total, signals, troubles, *each = self.processes.sum(
            [own, interrupted, self._trouble is not None, *each]
        )
        self.state.seconds += min(each)  # where one is paused, the others wait for it
        self._interrupted = signals > 0
        if troubles > 0:
            self._raise_diverged()
        return total

    def _update(self, group: list[Batch], total: float, meter: Meter) -> None:
        """One update from the batches of `group`, every one of `total` target tokens alike."""
        options, accelerator = self.options, self.accelerator
        self.model.train()
        nats: list[torch.Tensor] = []
        real = [batch for batch in group if not batch.is_filler]
        for index, batch in enumerate(group):
            # Gradients are averaged over processes and the sum is wanted.
            weight = 0.0 if batch.is_filler else float(accelerator.num_processes)
            inputs = {name: x.to(accelerator.device) for name, x in batch.inputs.items()}
            is_last = index == len(group) - 1
            with accelerator.autocast(), _synced(accelerator, self.model, is_last):
                # The sum over tokens, by a number that never changes: a compiled model would be
                # compiled again for every `total`.
                output = self.model(
                    **inputs, num_items_in_batch=1, smoothing=options.label_smoothing
                )
                accelerator.backward(output.loss / total * weight)
            if not batch.is_filler:
                nats.append(output.get("unsmoothed_loss", output.loss).detach())
                meter.add(batch, nats[-1])
        norm = accelerator.clip_grad_norm_(
            self.model.parameters(), options.max_grad_norm or math.inf
        )
        meter.grad_norm = norm
        meter.learning_rate = options.learning_rate * learning_rate_factor(
            options, self.state.step, self.progress()
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = meter.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step, self._found = self.state.step + 1, None
        self.watch.add(
            self.state.step,
            [index for batch in real for index in batch.indices],
            sum(nats, torch.zeros(())),
            sum(batch.num_target_tokens for batch in real),
            norm,
        )

    def _look(self) -> None:
        self._trouble = self._trouble or self.watch.look()

    def _stop_if_diverged(self) -> None:
        """On every process, if one of them has seen trouble by now."""
        self._look()
        if self.processes.sum([self._trouble is not None])[0] > 0:
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        last = self.checkpoints.newest() if self.checkpoints else None
        raise diverged(self.processes.gather(self._trouble), self.watch.limit, last)

    def _evaluate(self) -> Standing:
        state = self.state
        state.since_best += 1
        return self._judge({"kind": "valid", "step": state.step, "seconds": state.seconds})

    def _judge(self, about: dict[str, Any]) -> Standing:
        """Validate the weights as they are; log it, and save them where they are the best."""
        score, record = self.validate(self.state.step)
        found = Standing(score, record.get("loss"))
        improved = found.beats(best_standing(self.state))
        self._log({**about, **record, "is_best": improved})
        if improved:
            (self.state.best, self.state.best_loss), self.state.since_best = found, 0
            self.processes.together(self.save_best)
        return found

    def _is_among_best(self, found: Standing) -> bool:
        assert self.checkpoints is not None, "asked without checkpoints"
        is_main = self.processes.is_main  # the only one that may look while it writes
        return bool(self.processes.gather(is_main and self.checkpoints.is_among_best(*found))[0])

    def _save(self, found: Standing | None) -> None:
        """Write a checkpoint; every process takes part, and all fail together."""
        self._stop_if_diverged()
        weights = snapshot.full_weights(self.model)
        for name in self.processes.gather(snapshot.first_not_finite(weights)):
            if name is not None:
                last = self.checkpoints.newest() if self.checkpoints else None
                raise DivergenceError(
                    f"the weights must be finite, but {name!r} is not after update "
                    f"{self.state.step}; {last_good(last)}."
                )
        randoms = self.processes.gather(snapshot.random_state(self.accelerator.device))
        meters = self.processes.gather(self.meter.to_dict())
        tensors = {
            "model": weights,
            "optimizer": snapshot.optimizer_tensors(self.model, self.optimizer),
            "random": {
                f"{rank}/{name}": tensor
                for rank, own in enumerate(randoms)
                for name, tensor in own.items()
            },
        }
        state = {"train": asdict(self.state), "meters": meters, "identity": self.identity}
        folder = self.checkpoints if self.processes.is_main else None
        known = {} if found is None else found._asdict()
        self.processes.together(
            lambda: folder and folder.save(self.state.step, tensors, state, **known)
        )

    def _try_average(self) -> None:
        """Validate the mean of the kept checkpoints; it becomes the model where it is best."""
        if self.options.average == "none" or self.checkpoints is None:
            return
        if self.options.average == "last":
            paths = self.checkpoints.complete()[-self.options.keep_last :]
        else:
            paths = self.checkpoints.best(self.options.keep_best)
        if not paths:  # all were scored by another metric
            return
        own = {k: tensor.clone() for k, tensor in snapshot.full_weights(self.model).items()}
        snapshot.set_weights(self.model, average_weights(paths))
        names = [path.name for path in paths]
        self._judge({"kind": "average", "step": self.state.step, "of": names})
        snapshot.set_weights(self.model, own)

    def _log(self, record: dict[str, Any]) -> None:
        self.processes.together(lambda: self.log(record))

    def _record(self) -> dict[str, Any]:
        """The log's line on the updates since the last one, the same on every process."""
        state = self.state
        return {
            "kind": "train",
            "step": state.step,
            "epoch": state.epoch,
            **self.meter.record(self.processes, self.chars_per_token),
            "peak_memory_mb": peak_memory(self.accelerator.device) / 1e6,
            "seconds": state.seconds,
            "eta_seconds": state.seconds * max(0.0, 1.0 / max(1e-9, self.progress()) - 1.0),
        }

    def _summary(self, record: dict[str, Any]) -> str:
        return (
            f"loss {record['loss']:.3f}, {record['bits_per_char']:.3f} bits/char, "
            f"{record['chars_per_second']:.0f} chars/s, {record['eta_seconds'] / 60:.1f} min left"
        )


def _synced(accelerator: Accelerator, model: torch.nn.Module, is_last: bool) -> Any:
    """Gradients travel between processes with the last batch of an update only."""
    return torch.enable_grad() if is_last else accelerator.no_sync(model)
