"""The training loop: `Trainer.train` runs it, and is told how to validate and to save the best.

Losses are nats per target token. Every token weighs the same, whatever batch and process it is in;
`LoopOptions.loss_mean` says what the gradients are of.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_qrnn.data.batching import Batch, EpochPlan
from hf_qrnn.data.flags import option

from . import run_state
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
from .evaluation import run_batch
from .graphs import Outcome, UpdateGraphs, make_recorder
from .identity import compare_identity
from .memory import give_back
from .meter import Meter, peak_memory
from .optimizers import LOSSES, OPTIMIZERS, SCHEDULES, WEIGHTS, learning_rate_factor, make_optimizer
from .options import check_at_least
from .processes import Processes
from .stopping import (
    Divergence,
    DivergenceError,
    DivergenceWatch,
    InterruptionError,
    Signals,
    divergence_error,
    last_good,
)

AVERAGES = ("none", "last", "best")


@dataclass
class LoopOptions:
    """Options of the optimisation; every field is a flag of the training scripts."""

    max_steps: int = option(0, "number of updates; 0 = as many as --epochs has")
    epochs: float = option(10.0, "passes over the data, where --max_steps is 0")
    max_minutes: float = option(
        0.0, "stop after N minutes of training, when the decay ends too; 0 = no limit"
    )
    max_tokens: int = option(4096, "most tokens of a batch on each side, padding included")
    pad_to_multiple_of: int = option(
        4, "lengths of a batch, and its number of rows, are multiples of N: few shapes"
    )
    gradient_accumulation_steps: int = option(1, "batches per update")
    cuda_graphs: bool = option(
        False, "on a GPU: whole updates as CUDA graphs, one a shape; for few shapes see above"
    )
    optimizer: str = option("adamw", "adamw, adam, rmsprop or sgd (without momentum)")
    learning_rate: float = option(1e-3, "learning rate after the warm-up, before the decay")
    schedule: str = option(
        "cosine",
        "decay of the learning rate: cosine or linear (to 0), constant (none), epochs (a factor)",
    )
    constant_epochs: int = option(0, "schedule epochs: first passes over the data without decay")
    epoch_factor: float = option(0.95, "schedule epochs: factor of every pass after them")
    warmup_steps: int = option(0, "first updates, in which the learning rate rises from 0")
    adam_beta1: float = option(0.9, "decay of the first moment")
    adam_beta2: float = option(0.999, "decay of the second moment; of rmsprop it is alpha")
    adam_epsilon: float = option(1e-8, "added to the second moment's root, of rmsprop too")
    weight_decay: float = option(
        0.0, "weight decay; of all but adamw it is L2, a part of the gradient"
    )
    decayed_weights: str = option(
        "matrices", "weights that decay: matrices (no biases, norms and embeddings) or all"
    )
    loss_mean: str = option(
        "tokens",
        "what an update's loss is a mean over: tokens, or rows of the sums of their tokens",
    )
    max_grad_norm: float = option(1.0, "rescale gradients of a larger norm to it; 0 = never")
    label_smoothing: float = option(
        0.0, "share of the target's probability that is spread over the vocabulary"
    )
    log_every: int = option(20, "updates between lines of metrics.jsonl")
    eval_every: int = option(500, "updates between validations; the last update has one too")
    patience: int = option(0, "stop after N validations in a row without a new best; 0 = never")
    loss_limit: float = option(
        5.0, "stop at a loss above N times ln(vocabulary size); 0 = only at one that is not finite"
    )
    save_every: int = option(1000, "updates between checkpoints; 0 = no checkpoints at all")
    keep_last: int = option(2, "newest checkpoints to keep")
    keep_best: int = option(1, "checkpoints of the best models to keep")
    average: str = option(
        "none", "at the end, validate the mean of the kept checkpoints too: none, last, best"
    )

    def __post_init__(self) -> None:
        least = {
            "max_steps": 0, "epochs": 0, "max_minutes": 0, "max_tokens": 1, "warmup_steps": 0,
            "pad_to_multiple_of": 1, "gradient_accumulation_steps": 1, "learning_rate": 0,
            "weight_decay": 0, "constant_epochs": 0, "epoch_factor": 0,
            "adam_epsilon": 0, "max_grad_norm": 0, "log_every": 1, "eval_every": 1, "patience": 0,
            "loss_limit": 0, "save_every": 0, "keep_last": 1, "keep_best": 0,
        }  # fmt: skip
        check_at_least(self, least)
        choices_of = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "average": AVERAGES}
        choices_of |= {"decayed_weights": WEIGHTS, "loss_mean": LOSSES}
        for name, allowed in choices_of.items():
            if getattr(self, name) not in allowed:
                choices, value = ", ".join(allowed), getattr(self, name)
                raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")
        for name in ("label_smoothing", "adam_beta1", "adam_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), but is {getattr(self, name)}.")

    def shaping(self) -> dict[str, Any]:
        """Return the options that shape every update: a resumed run must have the same."""
        free = {"max_steps", "epochs", "max_minutes", "log_every", "eval_every", "patience"}
        free |= {"loss_limit", "save_every", "keep_last", "keep_best", "average"}
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass
class TrainState:
    """The progress of a training run; a checkpoint holds it.

    Attributes:
        step: Updates made.
        epoch: Passes begun, from 0.
        batch: Batches of this pass already used.
        seconds: Time spent training, validation not counted.
        best: Best validation score so far, higher is better, or None.
        best_loss: Validation loss of that model.
        best_by: The order that found it (best.py).
        since_best: Validations since then.
        finished: The reason why training ended: "budget", "patience", or "" while it goes on.
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


class Trainer:
    """The trainer of a model on batches.

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
        identity: Values by name, which a checkpoint must have too for this run to go on from it.
        forward: Called with model, batch and label smoothing; its output's `loss` is a sum.
        carried: What must go into a checkpoint beside the model; None = nothing.
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
        forward: Callable[[torch.nn.Module, Batch, float], Any] = run_batch,
        carried: run_state.Carried | None = None,
    ) -> None:
        self.forward, self.carried = forward, carried
        self.options, self.accelerator = options, accelerator
        self.sampler, self.loader = sampler, loader
        self.chars_per_token = chars_per_token
        self.log, self.validate, self.save_best = log, validate, save_best
        self.checkpoints = checkpoints if options.save_every > 0 else None
        self.state, self.meter = TrainState(), Meter()
        self.processes = Processes(accelerator)
        # Another number of processes makes other batches.
        self.identity = {"world_size": self.processes.count, **(identity or {})}
        # A uniform guess costs ln(V) nats a token.
        limit = options.loss_limit * math.log(max(2, model.config.vocab_size))
        self.watch = DivergenceWatch(limit if limit > 0 else math.inf)
        self._divergence: Divergence | None = None
        self._interrupted = False
        self._found: Standing | None = None  # of the weights as they are now, if validated
        # An older version wrote no values of options that it did not have: they were the defaults.
        config: Any = type(model.config)()
        # What releases did that did not have an option: 0.1.0 padded to the longest.
        before = {**LoopOptions().shaping(), "pad_to_multiple_of": 1}
        self._defaults = {**before, "model": config.to_diff_dict()}
        optimizer = make_optimizer(model, options)
        # The loader is not prepared: the sampler has already split its batches by rank.
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.graphs = self._make_graphs() if options.cuda_graphs else None
        # `len` of a stream raises, and says that `max_steps` is needed: so it is asked only then.
        self.max_steps = options.max_steps or math.ceil(
            options.epochs * math.ceil(len(sampler) / options.gradient_accumulation_steps)
        )

    def _make_graphs(self) -> UpdateGraphs:
        if self.processes.count > 1:
            raise ValueError(
                f"`cuda_graphs` must be False with {self.processes.count} processes, but is True."
            )
        device = self.accelerator.device
        return UpdateGraphs(self._compute, self.optimizer, device, make_recorder(device))

    def progress(self) -> float:
        """Compute the share of the budget used: of updates, or of minutes where that is more."""
        used = self.state.step / self.max_steps if self.max_steps > 0 else 1.0
        if self.options.max_minutes > 0:
            used = max(used, self.state.seconds / (60.0 * self.options.max_minutes))
        return used

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, exactly: weights, optimiser, random numbers, place in the data.

        Raises:
            CheckpointError: If a file of it is missing or altered.
            ValueError: If it belongs to another run (names what differs).
        """
        checkpoint = self.processes.together(lambda: self._read_own(path))
        run_state.set_weights(self.model, checkpoint.tensors["model"])
        run_state.set_optimizer_tensors(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        self.state = TrainState(**checkpoint.state["train"])
        marker = read_marker(path)
        if marker["score"] is not None:
            # These weights are validated: `train` must not do it, and count it, once more.
            self._found = Standing(marker["score"], marker.get("loss"))
        self.meter = Meter.of(checkpoint.state["meters"][self.processes.rank])
        self._warm_up_ddp()
        if self.carried is not None:
            carried = checkpoint.tensors.get("carried", {})
            self.carried.load_state_dict(run_state.of_rank(self.processes.rank, carried))
        mine = run_state.of_rank(self.processes.rank, checkpoint.tensors["random"])
        # Last, since dropout in that pass has drawn from the generators.
        run_state.set_random_state(mine, self.accelerator.device)

    def _read_own(self, path: Path) -> Checkpoint:
        checkpoint = read_checkpoint(path)
        compare_identity(self.identity, checkpoint.state["identity"], self._defaults, path)
        return checkpoint

    def _warm_up_ddp(self) -> None:
        """Run one backward pass and throw its gradients away, so that DDP sums as before.

        DDP puts gradients into new buckets after its first backward pass. With three or more
        processes the order in which they are added, and so the last bit, depends on the bucket.
        The run that was not interrupted had its first pass long ago.
        """
        if self.processes.count == 1:
            return
        self.sampler.set_epoch(self.state.epoch)
        batch = next(iter(self.loader))
        self.model.train()
        with self.accelerator.autocast():
            output = self.forward(self.model, batch.to(self.accelerator.device), 0.0)
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
        # Resumed after its end: all is done, but perhaps for what follows the last checkpoint.
        if state.finished and ended and state.best is not None:
            self._try_average()
            return state
        # Empty again where the budget is larger than in the run that wrote the checkpoint.
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
            # Seconds of the last update. They are summed over the processes with the next one's
            # tokens: one all-reduce an update is enough.
            lap = 0.0
            for group in () if ended else self._groups():
                total = self._sync_processes(group, lap, signals.received)
                self._update(group, total, self.meter)
                state.batch += len(group)
                bar.update()
                state.finished = self._ended()
                if self._is_due() or self.accelerator.device.type == "cpu":
                    # Waits for a GPU, so only where something follows that waits anyway, and
                    # before the clock is read: the time it works is the updates'.
                    self._check_divergence()
                if self.accelerator.device.type == "cpu":
                    give_back(state.step)
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
        """Compute the SHA-256 of all weights as they are now."""
        return hash_tensors(run_state.full_weights(self.model))

    def _ended(self) -> str:
        """Name the reason why no update is left: "budget", "patience", or "" where one is."""
        if self.progress() >= 1.0:
            return "budget"
        patience = self.options.patience
        return "patience" if 0 < patience <= self.state.since_best else ""

    def _is_due(self) -> bool:
        """Tell whether anything but the next update follows this one."""
        step, options = self.state.step, self.options
        every = (options.log_every, options.eval_every, options.save_every or step + 1)
        return bool(self.state.finished) or any(step % number == 0 for number in every)

    def _after_update(self, bar: tqdm[Any]) -> None:
        """Log, validate and save where due."""
        state, options = self.state, self.options
        is_last = bool(state.finished)
        # Without seconds there was no update since the last line: the run was resumed just now.
        if (state.step % options.log_every == 0 or is_last) and self.meter.seconds > 0:
            record = self._record()
            self._log(record)
            bar.set_postfix_str(self._summary(record))
            self.meter = Meter()
        if state.step % options.eval_every == 0 or is_last:
            self._stop_if_diverged()
            # A best may have been forgotten since these weights were validated: validate again.
            if self._found is None or state.best is None:
                self._found = self._evaluate()
            # This validation may have been the last that `patience` allows.
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
        """Yield the batches of each update, epoch after epoch, from where the state stands."""
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
                yield group  # the last update of an epoch may have fewer batches
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def _sync_processes(self, group: list[Batch], seconds: float, interrupted: bool) -> float:
        """Sum the tokens (or rows) of `group` over all processes; agree on time and on stopping.

        Processes that measured time alone would end, and decay the learning rate, at different
        updates. A signal, or a loss that diverged, may reach one of them only.
        """
        by_rows = self.options.loss_mean == "rows"
        own = sum(
            len(batch.inputs["labels"]) if by_rows else batch.num_target_tokens
            for batch in group
            if not batch.is_filler
        )
        # A sum in which each process has a place of its own is a gather.
        each = [0.0] * self.processes.count
        each[self.processes.rank] = seconds
        total, signals, divergences, *each = self.processes.sum(
            [own, interrupted, self._divergence is not None, *each]
        )
        # The least: while one process is paused, the others wait for it and count the time.
        self.state.seconds += min(each)
        self._interrupted = signals > 0
        if divergences > 0:
            self._raise_diverged()
        return total

    def _update(self, group: list[Batch], total: float, meter: Meter) -> None:
        """Make one update from `group`, whose loss is divided by `total`, its tokens or rows."""
        self.model.train()
        meter.learning_rate = self.options.learning_rate * learning_rate_factor(
            self.options, self.state.step, self.progress(), self.state.epoch
        )
        if self.graphs is not None:
            self.graphs.set_rate(meter.learning_rate)
            found = self.graphs.update(group, total)
        else:
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = meter.learning_rate
            found = self._compute(group, total)
        meter.grad_norm = found.grad_norm
        pairs = zip(group, found.nats, strict=True)
        counted = [(batch, nats) for batch, nats in pairs if not batch.is_filler]
        for batch, nats in counted:
            meter.add(batch, nats)
        # These weights are not validated yet.
        self.state.step, self._found = self.state.step + 1, None
        self.watch.add(
            self.state.step,
            [index for batch, _ in counted for index in batch.indices],
            sum((nats for _, nats in counted), torch.zeros(())),
            sum(batch.num_target_tokens for batch, _ in counted),
            found.grad_norm,
        )

    def _compute(self, group: Sequence[Batch], total: float | torch.Tensor) -> Outcome:
        """Do the work of an update: gradients, clipping, and the optimiser's step."""
        options, accelerator = self.options, self.accelerator
        nats: list[torch.Tensor] = []
        for index, batch in enumerate(group):
            # DDP averages gradients over processes, and their sum is wanted. A filler is computed
            # too, with weight 0: every process must take part in every sum.
            weight = 0.0 if batch.is_filler else float(accelerator.num_processes)
            is_last = index == len(group) - 1
            with accelerator.autocast(), _synced(accelerator, self.model, is_last):
                # The loss is the sum over tokens, divided by 1: `total` as an argument would have
                # a compiled model compiled again for each of its values.
                output = self.forward(
                    self.model, batch.to(accelerator.device), options.label_smoothing
                )
                accelerator.backward(output.loss / total * weight)
            # The log shows the plain loss, which runs of other smoothing can be compared by.
            nats.append(output.get("unsmoothed_loss", output.loss).detach())
        # Above infinity nothing is rescaled, but the norm is measured for the log all the same.
        norm = accelerator.clip_grad_norm_(
            self.model.parameters(), options.max_grad_norm or math.inf
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Outcome(nats, norm)

    def _check_divergence(self) -> None:
        # The first one is kept until all processes meet, and then all raise together.
        self._divergence = self._divergence or self.watch.check()

    def _stop_if_diverged(self) -> None:
        """Raise on every process if an update of one of them has diverged by now."""
        self._check_divergence()
        if self.processes.sum([self._divergence is not None])[0] > 0:
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        last = self.checkpoints.newest() if self.checkpoints else None
        found = self.processes.gather(self._divergence)
        raise divergence_error(found, self.watch.limit, last)

    def _evaluate(self) -> Standing:
        state = self.state
        state.since_best += 1  # `_judge` sets it to 0 if this one is the best
        return self._judge({"kind": "valid", "step": state.step, "seconds": state.seconds})

    def _judge(self, about: dict[str, Any]) -> Standing:
        """Validate the weights as they are, log it, and save them if they are the best."""
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
        # A run must be able to go on from whatever is saved: nothing that has diverged is.
        self._stop_if_diverged()
        weights = run_state.full_weights(self.model)
        for name in self.processes.gather(run_state.first_not_finite(weights)):
            if name is not None:
                last = self.checkpoints.newest() if self.checkpoints else None
                raise DivergenceError(
                    f"the weights must be finite, but {name!r} is not after update "
                    f"{self.state.step}; {last_good(last)}."
                )
        randoms = self.processes.gather(run_state.random_state(self.accelerator.device))
        meters = self.processes.gather(self.meter.to_dict())
        carried = self.processes.gather(self.carried.state_dict() if self.carried else {})
        tensors = {
            "model": weights,
            "optimizer": run_state.optimizer_tensors(self.model, self.optimizer),
            "random": run_state.by_rank(randoms),
        }
        if any(carried):
            tensors["carried"] = run_state.by_rank(carried)
        state = {"train": asdict(self.state), "meters": meters, "identity": self.identity}
        folder = self.checkpoints if self.processes.is_main else None
        known = {} if found is None else found._asdict()
        self.processes.together(
            lambda: folder and folder.save(self.state.step, tensors, state, **known)
        )

    def _try_average(self) -> None:
        """Validate the mean of the kept checkpoints; it becomes the model if it is the best."""
        if self.options.average == "none" or self.checkpoints is None:
            return
        if self.options.average == "last":
            paths = self.checkpoints.complete()[-self.options.keep_last :]
        else:
            paths = self.checkpoints.best(self.options.keep_best)
        if not paths:  # all were scored by another metric
            return
        # Clones, since these may be the model's own tensors, which are written over next.
        own = {k: tensor.clone() for k, tensor in run_state.full_weights(self.model).items()}
        run_state.set_weights(self.model, average_weights(paths))
        names = [path.name for path in paths]
        self._judge({"kind": "average", "step": self.state.step, "of": names})
        # training.json has the hash of the last update's weights, by which runs are compared.
        run_state.set_weights(self.model, own)

    def _log(self, record: dict[str, Any]) -> None:
        self.processes.together(lambda: self.log(record))

    def _record(self) -> dict[str, Any]:
        """Make the log's line on the updates since the last one, the same on every process."""
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
        bits = f"{record['bits_per_char']:.3f} bits/char, " if "bits_per_char" in record else ""
        return (
            f"loss {record['loss']:.3f}, {bits}{record['chars_per_second']:.0f} chars/s, "
            f"{record['eta_seconds'] / 60:.1f} min left"
        )


def _synced(accelerator: Accelerator, model: torch.nn.Module, is_last: bool) -> Any:
    """Let gradients travel between processes with the last batch of an update only."""
    return torch.enable_grad() if is_last else accelerator.no_sync(model)
