"""Translation as a task (section 3.3 of arXiv 1611.01576): sentences and their translations."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from hf_qrnn.data.batching import Batch, EncodedPair, EpochPlan
from hf_qrnn.data.reading import DataOptions, TextPair, TranslationData, load_translation_data
from hf_qrnn.data.streaming import StreamBatches, encode_stored
from hf_qrnn.data.tokenization import (
    encode_batch,
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.translation.translator import one_line

from .best import Choice, choose_metric
from .checkpoint import CheckpointFolder
from .evaluation import score_pairs
from .fine_tuning import Base, begin, find_base
from .loop import Trainer
from .options import ModelOptions, RunOptions, TokenizerOptions
from .processes import Processes
from .run_folder import RunFolder, write_lines
from .task import PairTask, make_model

logger = logging.getLogger(__name__)


def make_tokenizer(options: TokenizerOptions, train: list[TextPair]) -> PreTrainedTokenizerBase:
    """Make the tokenizer that `--tokenizer` names; "char" learns its vocabulary from both sides."""
    if options.tokenizer == "byte":
        return make_byte_tokenizer(nfc=options.nfc)
    if options.tokenizer == "char":
        texts = (text for pair in train for text in (pair.source, pair.target))
        return train_character_tokenizer(texts, min_count=options.min_count, nfc=options.nfc)
    return load_tokenizer(options.tokenizer)


class TranslationTask(PairTask):
    """Translation, measured by all metrics of `hf_qrnn.metrics.table.VALIDATED`."""

    kinds: ClassVar[tuple[type, ...]] = (DataOptions, TokenizerOptions, ModelOptions)
    data: TranslationData

    @classmethod
    def find_base(cls, options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
        """Find the model of `--init_from`, or what the run that is resumed began with."""
        return find_base(options, checkpoints)

    def load(self, processes: Processes) -> None:
        """Read the pairs, and make the model anew or from its base."""
        data_options, tokenizer_options, model_options = self.given
        data = self.data = processes.together(lambda: load_translation_data(data_options))
        self.train, self.valid, self.test = data.train, data.valid, data.test
        if self.base is None:
            self.tokenizer = make_tokenizer(tokenizer_options, data.train)
            self.model = make_model(model_options, self.tokenizer)
            return
        texts = (text for pair in data.train for text in (pair.source, pair.target))
        seed = self.options.seed
        self.base = begin(self.base, model_options, tokenizer_options, texts, seed=seed)
        self.model, self.tokenizer = self.base.model, self.base.tokenizer

    @property
    def is_stream(self) -> bool:
        """True where the training pairs are read as they are needed."""
        return self.data.stream is not None

    @property
    def num_shown(self) -> int:
        """Number of validation sentences, the first ones, that are translated each time."""
        wanted, there = self.options.eval_sentences, len(self.valid)
        return there if wanted < 0 else min(wanted, there)

    def choose(self, before: str) -> Choice:
        """Choose what `--metric` says; a resumed run goes on with its own."""
        options = self.options
        return choose_metric(
            options.metric,
            self.valid,
            self.num_shown,
            bleu_tokenize=options.bleu_tokenize,
            before=before,
        )

    def score(self, choice: Choice, record: Mapping[str, Any]) -> float:
        """Give the score by the metric that was chosen."""
        return choice.score(record)

    def encode(self, processes: Processes) -> Sequence[EncodedPair]:
        """Encode the training pairs, in several processes where that was asked for."""
        number = self.data.num_proc
        if number == 0:
            return super().encode(processes)
        return processes.main_first(
            lambda: encode_stored(self.tokenizer, self.train, num_proc=number)
        )

    def plan(self, share: Mapping[str, Any]) -> tuple[EpochPlan, Iterable[Batch]]:
        """Plan the training batches, of a stream as it is read."""
        if self.data.stream is None:
            return super().plan(share)
        size, seed = self.loop.max_tokens, self.options.seed
        stream = StreamBatches(
            self.data.stream, self.tokenizer, max_tokens=size, seed=seed, **share
        )
        return stream, stream

    def describe(self) -> dict[str, Any]:
        """Count pairs and characters, and those that were left out."""
        logger.info("%s; %d parameters", self.data.report, self.model.num_parameters())
        return {**super().describe(), "filter": str(self.data.report)}

    def measure(self, processes: Processes) -> dict[str, Any]:
        """Translate the first validation sentences greedily, and score them."""
        references = [pair.target for pair in self.valid[: self.num_shown]]
        if not references:
            return {}
        return score_pairs(
            self.model,
            self.tokenizer,
            self.sources[: len(references)],
            references,
            processes,
            batch_size=self.options.eval_batch_size,
            bleu_tokenize=self.options.bleu_tokenize,
        )[0]

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:
        """Translate the test set with the best model, reloaded; write scores and translations."""
        if not self.test:
            return
        best = QRNNForConditionalGeneration.from_pretrained(folder.path)
        record, texts = score_pairs(
            best.to(trainer.accelerator.device),
            self.tokenizer,
            encode_batch(self.tokenizer, [pair.source for pair in self.test]),
            [pair.target for pair in self.test],
            trainer.processes,
            batch_size=self.options.eval_batch_size,
            num_beams=self.options.num_beams,
            num_resamples=1000,
            bleu_tokenize=self.options.bleu_tokenize,
        )
        folder.write_json("test.json", record)
        if folder.is_main_process:
            write_lines(folder.path / "test.hypotheses.txt", [one_line(text) for text in texts])
        logger.info("test: %s", json.dumps(record))
