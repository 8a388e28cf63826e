"""Tasks: data, model and measure of a run; `run_task` (run.py) does the rest.

A user's own task is one file, a subclass of `PairTask` (docs/own_task.md).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.batching import (
    Batch,
    BucketBatchSampler,
    EncodedPair,
    EpochPlan,
    encode_pairs,
    hash_pairs,
    make_loader,
)
from hf_qrnn.data.reading import TextPair
from hf_qrnn.model.configuration_qrnn import QRNNConfig
from hf_qrnn.model.limits_qrnn import DEFAULT_OFFSET, DEFAULT_RATIO, length_rule, set_length_rule
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.translation.lengths import measure_lengths

from .best import Choice, fingerprint
from .cards import describe_data
from .checkpoint import CheckpointFolder
from .evaluation import mean_loss
from .fine_tuning import Base
from .loop import LoopOptions, Trainer
from .options import ModelOptions, RunOptions
from .processes import Processes
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def make_model(options: ModelOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Make a model with random weights for the tokenizer's ids."""
    start = tokenizer.bos_token_id
    config = QRNNConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if start is None else start,
        **asdict(options),
    )
    return QRNNForConditionalGeneration(config)


class Task(ABC):
    """Data, model and measure of a run; methods are called in the order in which they stand here.

    Every process makes its own task and calls every method at the same point.

    Args:
        given: An object of each of `kinds`, from the flags.
        loop: How to optimise.
        options: The run itself.

    Attributes:
        kinds: Dataclasses whose fields are the task's flags, beside those of every run.
        model: Made by `load`.
        tokenizer: Made by `load`; saved with the model.
        base: What the run began with, if not with random weights.
    """

    kinds: ClassVar[tuple[type, ...]] = (ModelOptions,)
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: Base | None = None

    def __init__(self, given: Sequence[Any], loop: LoopOptions, options: RunOptions) -> None:
        self.given, self.loop, self.options = given, loop, options

    @classmethod
    def find_base(cls, options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
        """Find what the run begins with; None = random weights.

        Raises:
            ValueError: If it is not there, or the task always begins with random weights.
        """
        if options.init_from is not None:
            raise ValueError(
                "`init_from` must be left out for a task that begins with random weights, but is "
                f"{options.init_from!r}."
            )
        return None

    @abstractmethod
    def load(self, processes: Processes) -> None:
        """Read the data, and make `model` and `tokenizer`; write nothing."""

    @abstractmethod
    def choose(self, before: str) -> Choice:
        """Choose the metric of the best model; `before` is the order in the checkpoint resumed."""

    @abstractmethod
    def batches(self, processes: Processes) -> tuple[EpochPlan, Iterable[Batch]]:
        """Encode the data: the plan of an epoch, and its batches."""

    @abstractmethod
    def chars_per_token(self) -> tuple[float, float]:
        """Count source and target characters per token, end tokens included."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Give what a resumed run must have the same, beside seed, model and options."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Give the numbers about the data, for run.json and the card."""

    @abstractmethod
    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Measure the model: the same record on every process, with "loss" and the metric.

        Args:
            model: As prepared for training; `self.model` is the one inside.
            processes: Those that share the work.
            device: Where the model is.
        """

    def score(self, choice: Choice, record: Mapping[str, Any]) -> float:
        """Give the score of a validation's record, higher is better."""
        return choice.score(record)

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:  # noqa: B027
        """Do what follows training, before the card is written; nothing by default."""


class PairTask(Task):
    """A task of sources and targets; a subclass has `load`, and may have `measure`.

    Attributes:
        metric: What chooses the best model: "loss", or a name in what `measure` returns, where
            more is better.
        train: The training pairs, set by `load`; of a stream the first.
        valid: The validation pairs, set by `load`.
        test: The test pairs.
        sources: Ids of the validation sources, when `measure` is called.
    """

    metric: ClassVar[str] = "loss"
    train: list[TextPair]
    valid: list[TextPair]
    test: Sequence[TextPair] = ()

    def measure(self, processes: Processes) -> dict[str, Any]:
        """Measure `self.model` on the validation pairs; the same on every process."""
        return {}

    def choose(self, before: str) -> Choice:
        """Choose `metric`, which no flag changes."""
        if self.options.metric not in ("auto", self.metric):
            raise ValueError(
                f"`metric` must be left out for a task that is measured by {self.metric}, but is "
                f"{self.options.metric!r}."
            )
        order = f"{self.metric}|data:{fingerprint(self.valid)}"
        return Choice(self.metric, "the task's own", order)

    def score(self, choice: Choice, record: Mapping[str, Any]) -> float:
        """Give the metric itself, or minus the loss."""
        return -record["loss"] if choice.metric == "loss" else record[choice.metric]

    def encode(self, processes: Processes) -> Sequence[EncodedPair]:
        """Encode the training pairs."""
        return encode_pairs(self.tokenizer, self.train)

    def batches(self, processes: Processes) -> tuple[EpochPlan, Iterable[Batch]]:
        """Encode all pairs, and plan batches of similar lengths."""
        self.encoded = self.encode(processes)
        self._limit_lengths()
        share = {"world_size": processes.count, "rank": processes.rank}
        pad: int = self.tokenizer.pad_token_id
        valid = encode_pairs(self.tokenizer, self.valid)
        self.sources = [pair.source_ids for pair in valid]
        in_order = BucketBatchSampler(
            valid, max_tokens=self.loop.max_tokens, shuffle=False, **share
        )
        self._valid_loader = make_loader(valid, in_order, pad_token_id=pad)
        return self.plan(share)

    def plan(self, share: Mapping[str, Any]) -> tuple[EpochPlan, Iterable[Batch]]:
        """Plan the training batches of this process, by its `rank` and the `world_size`."""
        sampler = BucketBatchSampler(
            self.encoded, max_tokens=self.loop.max_tokens, seed=self.options.seed, **share
        )
        workers, pad = self.options.num_workers, self.tokenizer.pad_token_id
        return sampler, make_loader(self.encoded, sampler, pad_token_id=pad, num_workers=workers)

    def chars_per_token(self) -> tuple[float, float]:
        """Count the characters of the training pairs per token."""
        source = sum(len(pair.source) for pair in self.train)
        target = sum(len(pair.target) for pair in self.train)
        return (
            source / sum(len(pair.source_ids) for pair in self.encoded),
            target / sum(len(pair.target_ids) for pair in self.encoded),
        )

    def identity(self) -> dict[str, Any]:
        """Give the hash of the training pairs."""
        return {"training data": hash_pairs(self.encoded)}

    def describe(self) -> dict[str, Any]:
        """Count pairs and characters."""
        return describe_data(self.train, self.valid, self.test)

    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Give the validation loss, and what `measure` finds."""
        loss = mean_loss(model, self._valid_loader, device, processes)
        return {"loss": loss, **self.measure(processes)}

    def _limit_lengths(self) -> None:
        """Save with the model how long targets may become, by what the training pairs have."""
        config = self.model.generation_config
        least = length_rule(config) or (DEFAULT_RATIO, DEFAULT_OFFSET)
        ratio, offset = measure_lengths(self.encoded, least=least)
        set_length_rule(config, ratio, offset)
        number = len(self.encoded)
        seen = f"the first {number} pairs of the stream" if self.is_stream else "the training pairs"
        logger.info(
            "translations may have %g x source + %d tokens, by %s with room", ratio, offset, seen
        )

    @property
    def is_stream(self) -> bool:
        """True where `train` is only the beginning of the training pairs."""
        return False


def checkpoints_of(options: RunOptions, loop: LoopOptions) -> CheckpointFolder:
    """Give the checkpoints of the run's folder."""
    path = Path(options.output_dir) / "checkpoints"
    return CheckpointFolder(path, keep_last=loop.keep_last, keep_best=loop.keep_best)
