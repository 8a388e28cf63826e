"""Classification as a task (section 3.1 of arXiv 1611.01576): a text and its label."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.batching import (
    Batch,
    BucketBatchSampler,
    EncodedPair,
    EpochPlan,
    hash_pairs,
    make_loader,
)
from hf_qrnn.data.flags import option
from hf_qrnn.data.labels import LabelledPlaces, load_labelled_texts
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import encode_batch
from hf_qrnn.data.words import train_prose_tokenizer
from hf_qrnn.metrics.intervals import wilson_interval
from hf_qrnn.model.modeling_qrnn import QRNNForSequenceClassification

from .best import Choice, fingerprint
from .checkpoint import CheckpointFolder
from .classifier_base import begin_classifier, find_classifier_base
from .embedding_start import Coverage, set_word_vectors
from .fine_tuning import Base
from .loop import Trainer
from .options import (
    DECODER_FLAGS,
    RunOptions,
    TokenizerOptions,
    check_at_least,
    with_model_flags,
)
from .processes import Processes
from .publish import draw_states
from .run_folder import RunFolder
from .task import Task, make_model, make_tokenizer

logger = logging.getLogger(__name__)

# Of ours, since data may not be free to show.
_SHOWN = (
    "This film begins slowly and its plot is thin, but the actors are wonderful, and the end moved "
    "me deeply. Not the worst way to spend an evening, but nothing I would watch again."
)


@dataclass
class ReadingOptions:
    """The reading of the texts, and the measure."""

    max_text_tokens: int = option(
        0, "of a longer training text its last N tokens are read; 0 = all, as in every other text"
    )
    word_dropout: float = option(0.0, "share of a training text's tokens that become <unk>")
    word_vectors: str | None = option(
        None, "begin with these word vectors: a text file of GloVe's or word2vec's form"
    )
    metric: str = option("accuracy", "what chooses the best model: accuracy or loss")

    def __post_init__(self) -> None:
        check_at_least(self, {"max_text_tokens": 0})
        if not 0 <= self.word_dropout < 1:
            raise ValueError(f"`word_dropout` must be in [0, 1), but is {self.word_dropout}.")
        if self.metric not in ("accuracy", "loss"):
            raise ValueError(f"`metric` must be accuracy or loss, but is {self.metric!r}.")


@dataclass
class ClassifierTokenizerOptions(TokenizerOptions):
    """The way from text to ids."""

    tokenizer: str = option("char", "char, word (words and marks), byte, a Hub id or a folder")
    min_count: int = option(1, "char, word: rarer ones become <unk>")
    max_words: int = option(0, "word: the N most frequent have an id; 0 = all")
    lower_case: bool = option(False, "word: read all letters as small ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, {"max_words": 0})
        if self.tokenizer != "word" and (self.max_words or self.lower_case):
            name = "max_words" if self.max_words else "lower_case"
            raise ValueError(
                f"`{name}` must be left out with the tokenizer {self.tokenizer!r}, but is "
                f"{getattr(self, name)}."
            )


@with_model_flags(without=DECODER_FLAGS)
@dataclass
class ClassifierOptions:
    """The model, which is an encoder and a linear layer; every field is one of QRNNConfig."""


class ClassificationTask(Task):
    """A classifier of texts, measured by its accuracy."""

    kinds: ClassVar[tuple[type, ...]] = (
        LabelledPlaces, ReadingOptions, ClassifierTokenizerOptions, ClassifierOptions,
    )  # fmt: skip
    without: ClassVar[frozenset[str]] = frozenset(
        {"label_smoothing", "source_tokens", "target_tokens", "source_nfd"}
    )
    defaults: ClassVar[Mapping[str, Any]] = {"output_dir": "runs/classifier"}

    @classmethod
    def find_base(cls, options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
        """Find the model of `--init_from`, or what the run that is resumed began with."""
        return find_classifier_base(options, checkpoints)

    def load(self, processes: Processes) -> None:
        """Read the texts, and make the model anew or from its base."""
        places, reading, tokenizer_options, model_options = self.given
        self.reading: ReadingOptions = reading
        texts = processes.together(lambda: load_labelled_texts(places))
        self.train, self.valid, self.test = texts.train, texts.valid, texts.test
        self.labels = sorted({pair.target for pair in self.train})
        _check_labels(self.labels, {"valid": self.valid, "test": self.test})
        fields = {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }
        if self.base is not None:
            self._check_base(tokenizer_options)
            self.base = begin_classifier(self.base, model_options, self.labels, **fields)
            self.model, self.tokenizer = self.base.model, self.base.tokenizer
        else:
            sources = [pair.source for pair in self.train]
            self.tokenizer = _make_tokenizer(tokenizer_options, sources)
            self.model = self.make_model(model_options, **fields)
        if reading.word_dropout and self.tokenizer.unk_token_id is None:
            raise ValueError(
                f"`word_dropout` must be 0 with the tokenizer {tokenizer_options.tokenizer!r}, "
                f"which has no unknown token, but is {reading.word_dropout}."
            )
        self.coverage: Coverage | None = None
        path = reading.word_vectors
        if path is not None:
            self.coverage = processes.together(
                lambda: set_word_vectors(self.model, self.tokenizer, path)
            )

    def make_model(self, options: Any, **fields: Any) -> PreTrainedModel:
        """Make the model of random weights of the flags and of more fields of its config."""
        head = QRNNForSequenceClassification
        return make_model(options, self.tokenizer, head, is_encoder_decoder=False, **fields)

    def _check_base(self, options: ClassifierTokenizerOptions) -> None:
        """Raise ValueError where a flag asks for what the base has already."""
        assert self.base is not None, "asked without a base"
        own, vectors = self.base.options()["tokenizer"], self.reading.word_vectors
        if options.tokenizer != own:
            raise ValueError(
                f"`tokenizer` must be left out with `init_from`, or be {own!r} as in "
                f"{self.base.name!r}, but is {options.tokenizer!r}."
            )
        if vectors is not None:
            raise ValueError(
                f"`word_vectors` must be left out with `init_from`, but is {vectors!r}."
            )

    def choose(self, before: str) -> Choice:
        """Choose what `--metric` says."""
        metric = self.reading.metric
        return Choice(metric, "by --metric", f"{metric}|data:{fingerprint(self.valid)}")

    def batches(self, processes: Processes) -> tuple[EpochPlan, Iterable[Batch]]:
        """Encode the texts, and plan batches of similar lengths."""
        encoded = self._encode(self.train)
        self.num_tokens = sum(len(pair.source_ids) for pair in encoded)
        self.encoded = [self._cut(pair) for pair in encoded]
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

    def _cut(self, pair: EncodedPair) -> EncodedPair:
        """Leave the last tokens of a training text, where reviews come to their judgement."""
        most = self.reading.max_text_tokens
        return EncodedPair(pair.source_ids[-most:], pair.target_ids) if most else pair

    def chars_per_token(self) -> tuple[float, float]:
        """Count the characters of the training texts per token; a label has none."""
        return sum(len(pair.source) for pair in self.train) / self.num_tokens, 0.0

    def identity(self) -> dict[str, Any]:
        """Give the hash of the training texts and labels, and what is done to them."""
        return {
            "training data": hash_pairs(self.encoded),
            "labels": " ".join(self.labels),
            # None where it is not used: releases that did not have it wrote nothing.
            "word_dropout": self.reading.word_dropout or None,
            "word_vectors": self.coverage.sha256 if self.coverage else None,
        }

    def describe(self) -> dict[str, Any]:
        """Count texts."""
        logger.info("labels %s; %d parameters", self.labels, self.model.num_parameters())
        counts = {"train": len(self.train), "valid": len(self.valid), "test": len(self.test)}
        if self.coverage is None:
            return counts
        found = self.coverage.record(pair.source_ids for pair in self.encoded)
        logger.info(
            "word vectors: %d of %d tokens of the vocabulary, %.1f %% of the training texts",
            found["found"], found["vocabulary"], 100 * found["share_of_tokens"],
        )  # fmt: skip
        return {**counts, "word_vectors": found}

    def forward(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
        """Run the model; the loss is a sum over the texts."""
        inputs = {**batch.inputs, "labels": batch.inputs["labels"][:, 0]}  # (B,)
        if model.training and self.reading.word_dropout:
            # Pads too, which nobody reads: the numbers drawn depend on the shape alone.
            ids = inputs["input_ids"]
            drops = torch.rand(ids.shape, device=ids.device) < self.reading.word_dropout
            inputs["input_ids"] = ids.masked_fill(drops, self.tokenizer.unk_token_id)
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
        best: Any = type(self.model).from_pretrained(folder.path).to(device)
        record = self._measure(best, self._in_order(self.test, processes), processes, device)
        folder.write_json("test.json", {"texts": len(self.test), **record})
        logger.info("test: %s", json.dumps(record))

    def illustrate(self, folder: Path) -> None:
        """Draw the states over a review of ours."""
        draw_states(folder, _SHOWN)

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
        low, high = wilson_interval(sums[1], sums[2])
        return {
            "loss": sums[0] / sums[2],
            "accuracy": sums[1] / sums[2],
            "accuracy_confidence": {"low": low, "high": high, "level": 0.95, "method": "Wilson"},
        }


def _make_tokenizer(
    options: ClassifierTokenizerOptions, texts: Sequence[str]
) -> PreTrainedTokenizerBase:
    if options.tokenizer != "word":
        return make_tokenizer(options, texts)
    return train_prose_tokenizer(
        texts,
        min_count=options.min_count,
        max_size=options.max_words,
        lower_case=options.lower_case,
    )


def _check_labels(known: Sequence[str], others: Mapping[str, Sequence[TextPair]]) -> None:
    if len(known) < 2:
        raise ValueError(f"`train_file` must have at least two labels, but has only {known[0]!r}.")
    for split, pairs in others.items():
        strange = next((pair.target for pair in pairs if pair.target not in known), None)
        if strange is not None:
            raise ValueError(
                f"`{split}_file` must have labels of the training texts, but has {strange!r}."
            )
