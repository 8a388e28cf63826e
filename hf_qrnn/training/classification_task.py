"""Classification as a task (section 3.1 of arXiv 1611.01576): a text and its label."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from hf_qrnn.data.batching import (
    Batch,
    BucketBatchSampler,
    EncodedPair,
    EpochPlan,
    hash_pairs,
    make_loader,
)
from hf_qrnn.data.flags import typed
from hf_qrnn.data.labels import read_labelled_file
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import encode_batch
from hf_qrnn.model.modeling_qrnn import QRNNForSequenceClassification

from .best import Choice, fingerprint
from .loop import Trainer
from .options import DECODER_FLAGS, TokenizerOptions, with_model_flags
from .processes import Processes
from .run_folder import RunFolder
from .task import Task, make_model, make_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class LabelledOptions:
    """The labelled texts."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "training texts (.jsonl, .tsv, .csv, .parquet; all but it also .gz, .xz)"
        },
    )
    valid_file: str | None = field(default=None, metadata={"help": "validation texts"})
    test_file: str | None = field(default=None, metadata={"help": "test texts, read at the end"})
    text_column: str = field(default="text", metadata={"help": "key or column of the text"})
    label_column: str = field(default="label", metadata={"help": "key or column of the label"})
    metric: str = field(
        default="accuracy", metadata={"help": "what chooses the best model: accuracy or loss"}
    )

    def __post_init__(self) -> None:
        if self.metric not in ("accuracy", "loss"):
            raise ValueError(f"`metric` must be accuracy or loss, but is {self.metric!r}.")


@with_model_flags(without=DECODER_FLAGS)
@dataclass
class ClassifierOptions:
    """The model, which is an encoder and a linear layer; every field is one of QRNNConfig."""


class ClassificationTask(Task):
    """A classifier of texts, measured by its accuracy."""

    kinds: ClassVar[tuple[type, ...]] = (LabelledOptions, TokenizerOptions, ClassifierOptions)
    without: ClassVar[frozenset[str]] = frozenset(
        {"label_smoothing", "source_tokens", "target_tokens", "source_nfd"}
    )
    defaults: ClassVar[Mapping[str, Any]] = {"output_dir": "runs/classifier"}

    def load(self, processes: Processes) -> None:
        """Read the texts, and make the tokenizer of the training texts and a model."""
        options, tokenizer_options, model_options = self.given
        self.train, self.valid, self.test = (
            processes.together(lambda split=split: _read(options, split))  # type: ignore[misc]
            for split in ("train", "valid", "test")
        )
        self.labels = sorted({pair.target for pair in self.train})
        _check_labels(self.labels, {"valid": self.valid, "test": self.test})
        self.tokenizer = make_tokenizer(tokenizer_options, (pair.source for pair in self.train))
        self.model = make_model(
            model_options,
            self.tokenizer,
            QRNNForSequenceClassification,
            is_encoder_decoder=False,
            id2label=dict(enumerate(self.labels)),
            label2id={label: index for index, label in enumerate(self.labels)},
            problem_type="single_label_classification",
        )

    def choose(self, before: str) -> Choice:
        """Choose what `--metric` says."""
        metric = self.given[0].metric
        return Choice(metric, "by --metric", f"{metric}|data:{fingerprint(self.valid)}")

    def batches(self, processes: Processes) -> tuple[EpochPlan, Iterable[Batch]]:
        """Encode the texts, and plan batches of similar lengths."""
        self.encoded = self._encode(self.train)
        self._valid_loader = self._in_order(self.valid, processes)
        sampler = BucketBatchSampler(
            self.encoded,
            max_tokens=self.loop.max_tokens,
            seed=self.options.seed,
            world_size=processes.count,
            rank=processes.rank,
            pad_to_multiple_of=self.loop.pad_to_multiple_of,
        )
        loader = make_loader(
            self.encoded,
            sampler,
            pad_token_id=self.tokenizer.pad_token_id,
            pad_to_multiple_of=self.loop.pad_to_multiple_of,
            num_workers=self.options.num_workers,
        )
        return sampler, loader

    def chars_per_token(self) -> tuple[float, float]:
        """Count the characters of the training texts per token; a label has none."""
        tokens = sum(len(pair.source_ids) for pair in self.encoded)
        return sum(len(pair.source) for pair in self.train) / tokens, 0.0

    def identity(self) -> dict[str, Any]:
        """Give the hash of the training texts and labels."""
        return {"training data": hash_pairs(self.encoded), "labels": " ".join(self.labels)}

    def describe(self) -> dict[str, Any]:
        """Count texts."""
        logger.info("labels %s; %d parameters", self.labels, self.model.num_parameters())
        return {"train": len(self.train), "valid": len(self.valid), "test": len(self.test)}

    def forward(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
        """Run the model; the loss is a sum over the texts."""
        inputs = {**batch.inputs, "labels": batch.inputs["labels"][:, 0]}  # (B,)
        return model(**inputs, num_items_in_batch=1)

    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Measure the validation texts."""
        return self._measure(model, self._valid_loader, processes, device)

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:
        """Measure the test texts with the best model, reloaded; write test.json."""
        if not self.test:
            return
        device, processes = trainer.accelerator.device, trainer.processes
        best = QRNNForSequenceClassification.from_pretrained(folder.path).to(device)
        record = self._measure(best, self._in_order(self.test, processes), processes, device)
        folder.write_json("test.json", {"texts": len(self.test), **record})
        logger.info("test: %s", json.dumps(record))

    def _encode(self, pairs: Sequence[TextPair]) -> list[EncodedPair]:
        """Encode texts; the one target id of each is its label's."""
        rows = encode_batch(self.tokenizer, [pair.source for pair in pairs])
        targets = [[self.labels.index(pair.target)] for pair in pairs]
        return [EncodedPair(*ids) for ids in zip(rows, targets, strict=True)]

    def _in_order(self, pairs: Sequence[TextPair], processes: Processes) -> DataLoader[Batch]:
        encoded = self._encode(pairs)
        sampler = BucketBatchSampler(
            encoded,
            max_tokens=self.loop.max_tokens,
            shuffle=False,
            world_size=processes.count,
            rank=processes.rank,
            pad_to_multiple_of=self.loop.pad_to_multiple_of,
        )
        return make_loader(
            encoded,
            sampler,
            pad_token_id=self.tokenizer.pad_token_id,
            pad_to_multiple_of=self.loop.pad_to_multiple_of,
        )

    @torch.no_grad()
    def _measure(
        self,
        model: nn.Module,
        loader: DataLoader[Batch],
        processes: Processes,
        device: torch.device,
    ) -> dict[str, Any]:
        """Give loss and accuracy, the same on every process; a filler counts nothing."""
        was_training = model.training
        model.eval()
        nats, right, number = 0.0, 0, 0
        for batch in loader:
            batch = batch.to(device)
            output = self.forward(model, batch)
            if not batch.is_filler:
                nats += float(output.loss)
                found = output.logits.argmax(-1) == batch.inputs["labels"][:, 0]
                right, number = right + int(found.sum()), number + len(found)
        model.train(was_training)
        sums = processes.sum([nats, right, number])
        return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2]}


def _read(options: LabelledOptions, split: str) -> list[TextPair]:
    """Read the texts of a split, each with its label as the target."""
    path = getattr(options, f"{split}_file")
    if path is None:
        if split == "test":
            return []
        raise ValueError(f"`{split}_file` must be a file of labelled texts, but is not given.")
    with typed(path=f"{split}_file"):
        pairs = read_labelled_file(
            path, text_column=options.text_column, label_column=options.label_column
        )
    if not pairs:
        raise ValueError(f"`{split}_file` must hold a text, but {path!r} is empty.")
    return pairs


def _check_labels(known: Sequence[str], others: Mapping[str, Sequence[TextPair]]) -> None:
    if len(known) < 2:
        raise ValueError(f"`train_file` must have at least two labels, but has only {known[0]!r}.")
    for split, pairs in others.items():
        strange = next((pair.target for pair in pairs if pair.target not in known), None)
        if strange is not None:
            raise ValueError(
                f"`{split}_file` must have labels of the training texts, but has {strange!r}."
            )
