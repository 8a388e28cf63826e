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
from hf_qrnn.data.distilled import (
    DistilledPair,
    DrawingSampler,
    alternatives_of,
    describe_distilled,
)
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.symbols import sides_of, train_symbol_tokenizer, with_alphabets, with_spellings
from hf_qrnn.data.tokenization import (
    is_nfd,
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.model.configuration_qrnn import QRNNConfig
from hf_qrnn.model.limits_qrnn import length_rule, set_length_rule
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.translation.lengths import least_rule, measure_lengths, usual_length
from hf_qrnn.translation.translator import load_translator

from .best import Choice, fingerprint
from .card_words import CardWords
from .cards import describe_data, example_sentence
from .checkpoint import CheckpointFolder
from .evaluation import mean_loss, run_batch
from .fine_tuning import Base
from .loop import LoopOptions, Trainer
from .options import ModelOptions, RunOptions, TokenizerOptions
from .processes import Processes
from .publish import draw_attention
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def make_tokenizer(options: TokenizerOptions, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Make the tokenizer that `--tokenizer` names; "char" learns its vocabulary from `texts`."""
    if options.tokenizer == "byte":
        return make_byte_tokenizer(nfc=options.nfc)
    if options.tokenizer == "char":
        return train_character_tokenizer(texts, min_count=options.min_count, nfc=options.nfc)
    return load_tokenizer(options.tokenizer)


def make_pair_tokenizer(
    options: TokenizerOptions, pairs: Sequence[TextPair]
) -> PreTrainedTokenizerBase:
    """Make the tokenizer of pairs: that of symbols or tags where they are asked for."""
    sides = {"source_tokens": options.source_tokens, "target_tokens": options.target_tokens}
    languages = sorted({pair.language for pair in pairs} - {""})
    has_symbols = "blank" in sides.values() or bool(languages)
    if options.tokenizer != "char" or not has_symbols:
        texts = (text for pair in pairs for text in (pair.source, pair.target))
        tokenizer = make_tokenizer(options, texts)
        options.check_sides(sides_of(tokenizer) or ("char", "char"))
        if options.source_nfd and not is_nfd(tokenizer):
            raise ValueError(
                f"`source_nfd` must be left out with the tokenizer {options.tokenizer!r}, which "
                "does not decompose characters, but is True."
            )
        return _remembering(tokenizer, pairs)
    tokenizer = train_symbol_tokenizer(
        (pair.source for pair in pairs),
        (pair.target for pair in pairs),
        **sides,
        languages=languages,
        min_count=options.min_count,
        nfc=options.nfc,
        source_nfd=options.source_nfd,
    )
    return _remembering(tokenizer, pairs)


def _remembering(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TextPair]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the letters and the spelling of each language's sources."""
    sources = [(pair.language, pair.source) for pair in pairs]
    return with_spellings(with_alphabets(tokenizer, sources), sources)


def make_model(
    options: Any,
    tokenizer: PreTrainedTokenizerBase,
    head: type[PreTrainedModel] = QRNNForConditionalGeneration,
    **fields: Any,
) -> PreTrainedModel:
    """Make a model with random weights for the tokenizer's ids.

    Args:
        options: A dataclass of fields of QRNNConfig.
        tokenizer: Gives the ids.
        head: The class of the model.
        fields: More fields of QRNNConfig.
    """
    start = tokenizer.bos_token_id
    config = QRNNConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if start is None else start,
        **asdict(options),
        **fields,
    )
    return head(config)


class Task(ABC):
    """Data, model and measure of a run; methods are called in the order in which they stand here.

    Every process makes its own task and calls every method at the same point.

    Args:
        given: An object of each of `kinds`, from the flags.
        loop: How to optimise.
        options: The run itself.

    Attributes:
        kinds: Dataclasses whose fields are the task's flags, beside those of every run.
        without: Flags of every run that the task has no use for, and does not offer.
        defaults: Values of flags of every run where they are not given.
        words: The task's words of the model card; None = those of its head.
        model: Made by `load`.
        tokenizer: Made by `load`; saved with the model.
        base: What the run began with, if not with random weights.
    """

    kinds: ClassVar[tuple[type, ...]] = (ModelOptions,)
    without: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {}
    words: ClassVar[CardWords | None] = None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: Base | None = None

    def __init__(self, given: Sequence[Any], loop: LoopOptions, options: RunOptions) -> None:
        self.given, self.loop, self.options = given, loop, options

    @classmethod
    def find_base(cls, options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
        """Find what the run begins with; None = random weights.

        Only a task that has this of its own offers `--init_from`.

        Raises:
            ValueError: If it is not there.
        """
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
        """Count source and target characters per token, end tokens included.

        0 on the target's side means that targets are no texts: the log has no bits per character.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Give what a resumed run must have the same, beside seed, model and options."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Give the numbers about the data, for run.json and the card."""

    def rehearse(self, choice: Choice, processes: Processes) -> None:  # noqa: B027
        """Find mistakes of `validate` before a new run writes anything; nothing by default.

        Raises:
            ValueError: If the metric chosen would not be measured.
        """

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

    def forward(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
        """Run the model on a batch of training; its output's `loss` is a sum over the targets.

        Args:
            model: As prepared for training.
            batch: The batch, where the model is.
            smoothing: Share of each target spread over the vocabulary.
        """
        return run_batch(model, batch, smoothing)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give what this process carries from batch to batch, for a checkpoint; by default none."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Take what `state_dict` of the same process gave."""

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:  # noqa: B027
        """Do what follows training, before the card is written; nothing by default."""

    def illustrate(self, folder: Path) -> None:  # noqa: B027
        """Draw pictures of the best model into its folder, for the card; nothing by default."""


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
        order = f"{self.metric}|data:{fingerprint(self.valid)}"
        return Choice(self.metric, "the task's own", order)

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
        multiple = {"pad_to_multiple_of": self.loop.pad_to_multiple_of}
        in_order = BucketBatchSampler(
            valid, max_tokens=self.loop.max_tokens, shuffle=False, **share, **multiple
        )
        self._valid_loader = make_loader(valid, in_order, pad_token_id=pad, **multiple)
        return self.plan(share)

    def plan(self, share: Mapping[str, Any]) -> tuple[EpochPlan, Iterable[Batch]]:
        """Plan the training batches of this process, by its `rank` and the `world_size`."""
        size, multiple = self.loop.max_tokens, self.loop.pad_to_multiple_of
        sampler = DrawingSampler(
            self.encoded,
            alternatives_of(self.train),
            max_tokens=size,
            seed=self.options.seed,
            pad_to_multiple_of=multiple,
            **share,
        )
        loader = make_loader(
            self.encoded,
            sampler,
            pad_token_id=self.tokenizer.pad_token_id,
            pad_to_multiple_of=multiple,
            num_workers=self.options.num_workers,
        )
        return sampler, loader

    def chars_per_token(self) -> tuple[float, float]:
        """Count the characters of the training pairs per token."""
        source = sum(len(pair.source) for pair in self.train)
        target = sum(len(pair.target) for pair in self.train)
        return (
            source / sum(len(pair.source_ids) for pair in self.encoded),
            target / sum(len(pair.target_ids) for pair in self.encoded),
        )

    def identity(self) -> dict[str, Any]:
        """Give the hash of the training pairs, and what is drawn from a teacher's."""
        found = {"training data": hash_pairs(self.encoded)}
        about = describe_distilled(self.train)
        if about:
            # The scores decide what is drawn, and are in no id.
            found["distilled_file"] = "{distilled_lines} lines, SHA-256 {distilled_sha256}".format(
                **about
            )
        return found

    def rehearse(self, choice: Choice, processes: Processes) -> None:
        """Measure the untrained model once, where the metric is the task's own."""
        if self.metric != "loss":
            found = {"loss": 0.0, **self.measure(processes)}
            processes.together(lambda: choice.score(found))

    def describe(self) -> dict[str, Any]:
        """Count pairs and characters, and a teacher's lines among them."""
        return {
            **describe_data(self.train, self.valid, self.test), **describe_distilled(self.train)
        }  # fmt: skip

    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Give the validation loss, and what `measure` finds."""
        loss = mean_loss(model, self._valid_loader, device, processes)
        return {"loss": loss, **self.measure(processes)}

    def illustrate(self, folder: Path) -> None:
        """Draw where the model looks in a sentence of ours: data may not be free to show."""
        translator = load_translator(str(folder), device="cpu")
        language = next(iter(translator.languages), None)
        draw_attention(translator, example_sentence(folder), folder, language=language)

    def _limit_lengths(self) -> None:
        """Save with the model how long targets may become, by what the training pairs have."""
        config = self.model.generation_config
        least = length_rule(config) or least_rule(self.tokenizer)
        # Not a teacher's: a line on which it lost its way would let its student do so too.
        taught = {i for i, pair in enumerate(self.train) if isinstance(pair, DistilledPair)}
        own = (pair for i, pair in enumerate(self.encoded) if i not in taught)
        ratio, offset = measure_lengths(own, least=least)
        set_length_rule(config, ratio, offset)
        # For documents, whose longer sentences are split (hf_qrnn/translation/documents.py).
        config.usual_source_chars = usual_length(len(pair.source) for pair in self.train)  # type: ignore[attr-defined]
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
