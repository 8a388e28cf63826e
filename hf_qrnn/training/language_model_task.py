"""Language modelling as a task (section 3.2 of arXiv 1611.01576): every token from all before it.

A text is one stream of tokens, cut into rows that are read side by side; the state at the end of a
row's part of a batch is where its next part begins.

Shapes: N tokens of the stream, B rows, T steps.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_qrnn.data.batching import Batch, EpochPlan
from hf_qrnn.data.flags import option, typed
from hf_qrnn.data.reading import read_lines
from hf_qrnn.data.text_sets import read_text_split
from hf_qrnn.data.tokenization import train_word_tokenizer
from hf_qrnn.model.cache_qrnn import QRNNCache
from hf_qrnn.model.modeling_qrnn import QRNNForCausalLM

from .best import Choice
from .loop import Trainer
from .options import (
    ATTENTION_FLAGS,
    CLASSIFIER_FLAGS,
    ENCODER_FLAGS,
    TokenizerOptions,
    check_at_least,
    with_model_flags,
)
from .processes import Processes
from .run_folder import RunFolder, write_lines
from .task import Task, make_model, make_tokenizer
from .text_stream import (
    RowBatches,
    TokenStream,
    begin,
    cache_of,
    make_stream,
    tensors_of,
    total_nats,
    write_on,
)

logger = logging.getLogger(__name__)
SAMPLES = "samples.txt"
"""What the best model wrote at the end of a run, in its folder."""
_SAMPLES = 3  # parts of the sample: each goes on from the state that the one before left


@dataclass
class TextOptions:
    """The texts, and how they are read."""

    train_file: str | None = field(default=None, metadata={"help": "training text (or .gz, .xz)"})
    valid_file: str | None = field(default=None, metadata={"help": "validation text"})
    test_file: str | None = field(default=None, metadata={"help": "test text, read at the end"})
    batch_size: int = field(
        default=20, metadata={"help": "rows read side by side, of all processes"}
    )
    sequence_length: int = field(
        default=105, metadata={"help": "steps of every row in a batch; gradients stop there"}
    )
    dataset_name: str | None = option(
        None, "a data set with splits, for the texts not given as files: a Hub id or a folder"
    )
    dataset_config: str | None = option(None, "the data set's configuration")
    text_column: str = option("text", "the data set's column of texts, which may have lines")
    strip_lines: bool = option(
        False, "leave out blanks at both ends of a line, as the Penn Treebank's files have them"
    )
    activation_penalty: float = option(
        0.0, "add N x the mean square of the last layer's output to the loss (AR)"
    )
    change_penalty: float = option(
        0.0, "add N x the mean square of its change from step to step (TAR)"
    )
    sample_tokens: int = option(200, "tokens that the best model writes at the end; 0 = none")
    sample_temperature: float = option(1.0, "what their logits are divided by; 0 = no chance")

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1, "sequence_length": 1, "activation_penalty": 0, "change_penalty": 0,
            "sample_tokens": 0, "sample_temperature": 0,
        }  # fmt: skip
        check_at_least(self, least)


@dataclass
class TextTokenizerOptions(TokenizerOptions):
    """The way from text to ids; the end of a line is a token too."""

    tokenizer: str = field(
        default="char",
        metadata={"help": "char, word (what stands between blanks), byte, a Hub id or a folder"},
    )
    min_count: int = field(default=1, metadata={"help": "char, word: rarer ones become <unk>"})
    bare_vocabulary: bool = option(
        False, "word: no ids for padding and a start: the Penn Treebank has 10,000 ids then"
    )


@with_model_flags(without=[*ENCODER_FLAGS, *ATTENTION_FLAGS, *CLASSIFIER_FLAGS])
@dataclass
class LanguageModelOptions:
    """The model, which is a decoder alone; every field is one of QRNNConfig."""


class LanguageModelTask(Task):
    """A language model of one text, measured by the perplexity of another."""

    kinds: ClassVar[tuple[type, ...]] = (TextOptions, TextTokenizerOptions, LanguageModelOptions)
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tokens", "num_workers", "pad_to_multiple_of", "source_tokens", "target_tokens",
            "source_nfd",
            "cuda_graphs",  # a graph would not see the state that is carried
        }
    )  # fmt: skip
    defaults: ClassVar[Mapping[str, Any]] = {"output_dir": "runs/language_model"}

    def load(self, processes: Processes) -> None:
        """Read the texts, and make the tokenizer of the training text and a model."""
        texts, tokenizer_options, model_options = self.given
        lines = {
            split: processes.together(lambda split=split: _read(texts, split))  # type: ignore[misc]
            for split in ("train", "valid", "test")
        }
        if tokenizer_options.tokenizer == "word":
            self.tokenizer = train_word_tokenizer(
                lines["train"],
                min_count=tokenizer_options.min_count,
                bare=tokenizer_options.bare_vocabulary,
            )
        else:
            self.tokenizer = make_tokenizer(tokenizer_options, lines["train"])
        streams = {name: make_stream(self.tokenizer, text) for name, text in lines.items()}
        self.train, self.valid, self.test = streams["train"], streams["valid"], streams["test"]
        self.model = self.make_model(model_options)
        self.state: QRNNCache | None = None

    def make_model(self, options: Any) -> PreTrainedModel:
        """Make the model of random weights that the flags describe."""
        return make_model(options, self.tokenizer, QRNNForCausalLM, is_encoder_decoder=False)

    def choose(self, before: str) -> Choice:
        """Choose the perplexity, which orders models as the loss does."""
        order = f"perplexity|data:{self.valid.digest()[:8]}"
        return Choice("perplexity", "that of the validation text", order)

    def batches(self, processes: Processes) -> tuple[EpochPlan, Iterable[Batch]]:
        """Cut the training text into rows; each process reads its share of them."""
        texts: TextOptions = self.given[0]
        rows = RowBatches(
            self.train.tokens,
            num_rows=texts.batch_size,
            length=texts.sequence_length,
            world_size=processes.count,
            rank=processes.rank,
        )
        return rows, rows

    def chars_per_token(self) -> tuple[float, float]:
        """Count the characters once: inputs and labels are the same text."""
        return 0.0, self.train.num_chars / len(self.train.tokens)

    def identity(self) -> dict[str, Any]:
        """Give the text, and how it is cut."""
        texts: TextOptions = self.given[0]
        names = ("batch_size", "sequence_length", "activation_penalty", "change_penalty")
        # A checkpoint of a release without the penalties has none.
        given = {name: getattr(texts, name) for name in names if getattr(texts, name)}
        return {"training data": self.train.digest(), **given}

    def describe(self) -> dict[str, Any]:
        """Count tokens."""
        logger.info(
            "%d tokens, %d characters, %d parameters",
            len(self.train.tokens), self.train.num_chars, self.model.num_parameters(),
        )  # fmt: skip
        streams = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: len(stream.tokens) for name, stream in streams.items()}

    def forward(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
        """Run the model from the state that the batch before left."""
        if batch.indices == (0,):
            self.state = None  # an epoch begins
        texts: TextOptions = self.given[0]
        state = self.state or QRNNCache(self.model.config.decoder_layers)
        penalties = (texts.activation_penalty, texts.change_penalty)
        output = model(
            input_ids=batch.inputs["input_ids"],
            shift_labels=batch.inputs["labels"],
            past_key_values=state,
            num_items_in_batch=1,
            smoothing=smoothing,
            **({"output_hidden_states": True} if any(penalties) else {}),
        )
        self.state = cache_of(tensors_of(state), self.model)  # without its graph
        if any(penalties):
            _penalize(output, batch.num_target_tokens, *penalties)
        return output

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give the state of this process's rows."""
        kept = {} if self.state is None else tensors_of(self.state)
        return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the state of this process's rows."""
        self.state = cache_of(tensors, self.model) if tensors else None

    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Measure the validation text."""
        return self._measure(model, self.valid, device)

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:
        """Measure the test text with the best model, reloaded, and let it write.

        Leaves test.json, where there is a test text, and samples.txt.
        """
        trainer.accelerator.wait_for_everyone()
        device = trainer.accelerator.device
        best: Any = type(self.model).from_pretrained(folder.path).to(device).eval()
        if len(self.test.tokens):
            record = self._measure(best, self.test, device)
            folder.write_json("test.json", {"tokens": len(self.test.tokens), **record})
            logger.info("test: %s", json.dumps(record))
        if self.given[0].sample_tokens and folder.is_main_process:
            write_lines(folder.path / SAMPLES, self.samples(best))

    def samples(self, model: PreTrainedModel) -> list[str]:
        """Let the model write, each part from the state that the part before left."""
        texts: TextOptions = self.given[0]
        generator = torch.Generator().manual_seed(self.options.seed)
        state, parts = begin(model), []
        for size in _shares(texts.sample_tokens, _SAMPLES):
            tokens, state = write_on(
                model, size, state, temperature=texts.sample_temperature, generator=generator
            )
            parts.append(tokens[0])
        return lines_of(self.tokenizer, torch.cat(parts))

    def _measure(
        self, model: nn.Module, stream: TokenStream, device: torch.device
    ) -> dict[str, Any]:
        inner = getattr(model, "module", model)
        nats = total_nats(model, inner, stream.tokens.to(device))
        loss = nats / len(stream.tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_character": nats / math.log(2) / stream.num_chars,
        }


def _read(texts: TextOptions, split: str) -> list[str]:
    path = getattr(texts, f"{split}_file")
    if path is not None:
        with typed(path=f"{split}_file"):
            lines = read_lines(path)
        if not lines:
            raise ValueError(f"`{split}_file` must hold a line, but {path!r} is empty.")
    elif texts.dataset_name is not None:
        lines = read_text_split(
            texts.dataset_name, texts.dataset_config, split, column=texts.text_column
        )
    elif split == "test":
        lines = []
    else:
        raise ValueError(f"`{split}_file` must be a text, but is not given.")
    return [line.strip(" ") for line in lines] if texts.strip_lines else lines


def _penalize(output: Any, num_tokens: int, activation: float, change: float) -> None:
    """Add the penalties of activations to a summed loss; the log keeps the plain one.

    Merity et al. 2017: AR of the last layer's output after dropout, TAR of the one before it.
    Here: both of the one that the output layer reads, behind dropout and norm.
    """
    last = output.hidden_states[-1].float()  # (B, T, H)
    steps = last[:, 1:] - last[:, :-1]
    penalty = activation * last.square().mean()
    if steps.numel():
        penalty = penalty + change * steps.square().mean()
    output["unsmoothed_loss"] = output.get("unsmoothed_loss", output.loss).detach()
    output["loss"] = output.loss + num_tokens * penalty


def _shares(total: int, number: int) -> list[int]:
    """Split `total` into `number` parts as equal as can be, none of them empty."""
    parts = [total * (i + 1) // number - total * i // number for i in range(number)]
    return [part for part in parts if part]


def lines_of(tokenizer: Any, tokens: torch.Tensor) -> list[str]:
    """Decode tokens (N,) to lines, which end tokens end."""
    ends = (tokens == tokenizer.eos_token_id).nonzero().flatten().tolist()
    sizes = torch.diff(torch.tensor([0, *(end + 1 for end in ends), len(tokens)])).tolist()
    rows = [part[part != tokenizer.eos_token_id] for part in tokens.split(sizes) if len(part)]
    # Not without special tokens: <unk> is a word of the Penn Treebank.
    texts = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]
    return [" ".join(text.split("\n")) for text in texts]
