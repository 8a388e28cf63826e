"""Translation as a task (section 3.3 of arXiv 1611.01576): sentences and their translations."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_qrnn.data.batching import Batch, EncodedPair, EpochPlan, encode_pairs
from hf_qrnn.data.distilled import with_distilled
from hf_qrnn.data.reading import DataOptions, TextPair, TranslationData, load_translation_data
from hf_qrnn.data.streaming import StreamBatches, encode_stored
from hf_qrnn.data.symbols import languages, sides_of, without_words
from hf_qrnn.data.tokenization import is_nfd
from hf_qrnn.data.translations import one_line
from hf_qrnn.metrics.table import check_bleu_tokenizer
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration

from .best import METRIC_CHOICES, Choice, check_metric, choose_metric
from .checkpoint import CheckpointFolder
from .evaluation import score_pairs
from .fine_tuning import Base, begin, find_base
from .loop import Trainer
from .options import ModelOptions, RunOptions, TokenizerOptions, check_at_least
from .processes import Processes
from .run_folder import RunFolder, write_lines
from .task import PairTask, make_model, make_pair_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class TranslationOptions:
    """The search for translations, and their measure."""

    eval_sentences: int = field(
        default=200,
        metadata={"help": "validation sentences to translate each time; 0 = none, -1 = all"},
    )
    metric: str = field(
        default="auto",
        metadata={
            "help": f"what chooses the best model: {', '.join(METRIC_CHOICES[1:])}, or auto (BLEU "
            "where references are long enough, else chrF; word_error_rate of symbols; the loss "
            "without translations)"
        },
    )
    bleu_tokenize: str = field(
        default="13a", metadata={"help": "sacrebleu's tokens for BLEU, as zh, char, ja-mecab"}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    num_beams: int = field(
        default=5, metadata={"help": "beams for the test set; validation is greedy"}
    )
    no_repeat_ngram_size: int = field(
        default=0,
        metadata={"help": "so many tokens in a row come once in a translation; 0 = no such rule"},
    )

    def __post_init__(self) -> None:
        least = {
            "eval_sentences": -1, "eval_batch_size": 1, "num_beams": 1, "no_repeat_ngram_size": 0,
        }  # fmt: skip
        check_at_least(self, least)
        check_metric(self.metric, self.eval_sentences)
        check_bleu_tokenizer(self.bleu_tokenize)


class TranslationTask(PairTask):
    """Translation, measured by all metrics of `hf_qrnn.metrics.table.VALIDATED`."""

    kinds: ClassVar[tuple[type, ...]] = (
        DataOptions, TokenizerOptions, ModelOptions, TranslationOptions,
    )  # fmt: skip
    defaults: ClassVar[Mapping[str, Any]] = {"output_dir": "runs/translation"}
    data: TranslationData

    @property
    def search(self) -> TranslationOptions:
        """The options of search and measure."""
        found: TranslationOptions = self.given[-1]
        return found

    @classmethod
    def find_base(cls, options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
        """Find the model of `--init_from`, or what the run that is resumed began with."""
        return find_base(options, checkpoints)

    def load(self, processes: Processes) -> None:
        """Read the pairs, and make the model anew or from its base."""
        data_options, tokenizer_options, model_options, _ = self.given
        if data_options.language_tag is not None and tokenizer_options.tokenizer == "byte":
            raise ValueError(
                "`language_tag` must be left out with the tokenizer 'byte', which has no tags, but "
                f"is {data_options.language_tag!r}."
            )
        data = self.data = processes.together(
            lambda: with_distilled(load_translation_data(data_options), data_options)
        )
        self.train, self.valid, self.test = data.train, data.valid, data.test
        if self.base is None:
            self.tokenizer = make_pair_tokenizer(tokenizer_options, data.train)
            self.model = make_model(model_options, self.tokenizer)
        else:
            seed = self.options.seed
            self.base = begin(self.base, model_options, tokenizer_options, data.train, seed=seed)
            self.model, self.tokenizer = self.base.model, self.base.tokenizer
        self._check_languages()
        if self.is_stream:
            # Its first pairs do not tell what the rest lacks.
            found = {pair.language for pair in data.train}
            self.tokenizer = without_words(self.tokenizer, found)
        # Saved with the model: whoever generates with it, generates as its test set was scored.
        ngram = self.search.no_repeat_ngram_size or None
        self.model.generation_config.no_repeat_ngram_size = ngram

    def _check_languages(self) -> None:
        """Raise ValueError where a pair has a language that the tokenizer has no tag for."""
        known = languages(self.tokenizer)
        splits: dict[str, Sequence[TextPair]] = {
            "training": self.train, "validation": self.valid, "test": self.test,
        }  # fmt: skip
        for name, pairs in splits.items():
            found = {pair.language for pair in pairs}
            for language in sorted(found - set(known or [""])):
                has = f"the tags {', '.join(map(repr, known))}" if known else "no tags"
                raise ValueError(
                    f"`language_tag` must give languages of the tokenizer, which has {has}, but "
                    f"the {name} pairs have {repr(language) if language else 'none'}."
                )

    @property
    def is_stream(self) -> bool:
        """True where the training pairs are read as they are needed."""
        return self.data.stream is not None

    @property
    def num_shown(self) -> int:
        """Number of validation sentences, the first ones, that are translated each time."""
        wanted, there = self.search.eval_sentences, len(self.valid)
        return there if wanted < 0 else min(wanted, there)

    def choose(self, before: str) -> Choice:
        """Choose what `--metric` says; a resumed run goes on with its own."""
        options = self.search
        return choose_metric(
            options.metric,
            self.valid,
            self.num_shown,
            bleu_tokenize=options.bleu_tokenize,
            before=before,
            has_symbols=(sides_of(self.tokenizer) or ("char", "char"))[1] == "blank",
        )

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
            self.data.stream,
            self.tokenizer,
            max_tokens=size,
            seed=seed,
            pad_to_multiple_of=self.loop.pad_to_multiple_of,
            **share,
        )
        return stream, stream

    def describe(self) -> dict[str, Any]:
        """Count pairs and characters, and those that were left out."""
        logger.info("%s; %d parameters", self.data.report, self.model.num_parameters())
        described = {**super().describe(), "filter": str(self.data.report)}
        sides, known = sides_of(self.tokenizer), languages(self.tokenizer)
        if sides is not None:
            described["source_tokens"], described["target_tokens"] = sides
            described["source_nfd"] = is_nfd(self.tokenizer)
        if known:
            counts = Counter(pair.language for pair in self.train)
            described["languages"] = {name: counts[name] for name in known}
        return described

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
            batch_size=self.search.eval_batch_size,
            bleu_tokenize=self.search.bleu_tokenize,
        )[0]

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:
        """Translate the test set with the best model, reloaded; write scores and translations."""
        if not self.test:
            return
        best = QRNNForConditionalGeneration.from_pretrained(folder.path)
        record, texts = score_pairs(
            best.to(trainer.accelerator.device),
            self.tokenizer,
            [pair.source_ids for pair in encode_pairs(self.tokenizer, self.test)],
            [pair.target for pair in self.test],
            trainer.processes,
            batch_size=self.search.eval_batch_size,
            num_beams=self.search.num_beams,
            num_resamples=1000,
            bleu_tokenize=self.search.bleu_tokenize,
        )
        folder.write_json("test.json", record)
        if folder.is_main_process:
            write_lines(folder.path / "test.hypotheses.txt", [one_line(text) for text in texts])
        logger.info("test: %s", json.dumps(record))
