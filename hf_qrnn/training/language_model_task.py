"""Language modelling as a task (section 3.2 of arXiv 1611.01576): every token from all before it.

A text is one stream of tokens, cut into rows that are read side by side; the state at the end of a
row's part of a batch is where its next part begins.

Shapes: N tokens of the stream, B rows, T steps.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.batching import Batch, EpochPlan
from hf_qrnn.data.flags import typed
from hf_qrnn.data.reading import read_lines
from hf_qrnn.data.tokenization import encode_batch, train_word_tokenizer
from hf_qrnn.model.cache_qrnn import QRNNCache
from hf_qrnn.model.layers_qrnn import LayerState
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
from .run_folder import RunFolder
from .task import Task, make_model, make_tokenizer

logger = logging.getLogger(__name__)
_STEPS = 1024  # of a call in validations; whatever it is, the loss is the same


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

    def __post_init__(self) -> None:
        check_at_least(self, {"batch_size": 1, "sequence_length": 1})


@dataclass
class TextTokenizerOptions(TokenizerOptions):
    """The way from text to ids; the end of a line is a token too."""

    tokenizer: str = field(
        default="char",
        metadata={"help": "char, word (what stands between blanks), byte, a Hub id or a folder"},
    )
    min_count: int = field(default=1, metadata={"help": "char, word: rarer ones become <unk>"})


@with_model_flags(without=[*ENCODER_FLAGS, *ATTENTION_FLAGS, *CLASSIFIER_FLAGS])
@dataclass
class LanguageModelOptions:
    """The model, which is a decoder alone; every field is one of QRNNConfig."""


@dataclass(frozen=True)
class TokenStream:
    """A text as one row of tokens.

    Attributes:
        tokens: (N,), every line with its end token.
        num_chars: Characters, every line with its end.
    """

    tokens: torch.Tensor
    num_chars: int

    def digest(self) -> str:
        """Give the SHA-256 of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()


def make_stream(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> TokenStream:
    """Join the tokens of all lines."""
    rows = encode_batch(tokenizer, lines)
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return TokenStream(tokens, sum(len(line) + 1 for line in lines))


class RowBatches:
    """The batches of an epoch, in the order of the text: plan and loader in one.

    What the rows leave over at the end of the stream is left out.

    Args:
        tokens: (N,), the stream.
        num_rows: Rows of all processes.
        length: Steps T of a batch; the last of an epoch may have fewer.
        world_size: Number of processes.
        rank: This process, from 0.

    Raises:
        ValueError: If the stream is too short, or the rows cannot be shared evenly.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        *,
        num_rows: int,
        length: int,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        if num_rows % world_size:
            raise ValueError(
                f"`batch_size` must be a multiple of the {world_size} processes, but is {num_rows}."
            )
        steps = (len(tokens) - 1) // num_rows
        if steps < 1:
            raise ValueError(
                f"`batch_size` must be less than the {len(tokens)} tokens of the training text, "
                f"but is {num_rows}."
            )
        starts = steps * torch.arange(rank, num_rows, world_size)
        # One more: the last step's label is the next row's first input.
        self._rows = tokens[starts[:, None] + torch.arange(steps + 1)]  # (B, steps + 1)
        self._length, self._start = length, 0
        self._number = math.ceil(steps / length)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the batch that the next iteration begins with; all epochs are alike."""
        self._start = start

    def __len__(self) -> int:
        return max(0, self._number - self._start)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._start, self._number):
            first = number * self._length
            part = self._rows[:, first : first + self._length + 1]
            inputs, labels = part[:, :-1], part[:, 1:]  # (B, T)
            yield Batch(
                {"input_ids": inputs, "labels": labels},
                is_filler=False,
                num_source_tokens=inputs.numel(),
                num_target_tokens=labels.numel(),
                indices=(number,),
            )


class LanguageModelTask(Task):
    """A language model of one text, measured by the perplexity of another."""

    kinds: ClassVar[tuple[type, ...]] = (TextOptions, TextTokenizerOptions, LanguageModelOptions)
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tokens", "num_workers", "pad_to_multiple_of", "source_tokens", "target_tokens",
            "source_nfd",
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
                lines["train"], min_count=tokenizer_options.min_count
            )
        else:
            self.tokenizer = make_tokenizer(tokenizer_options, lines["train"])
        streams = {name: make_stream(self.tokenizer, text) for name, text in lines.items()}
        self.train, self.valid, self.test = streams["train"], streams["valid"], streams["test"]
        self.model = make_model(
            model_options, self.tokenizer, QRNNForCausalLM, is_encoder_decoder=False
        )
        self.state: QRNNCache | None = None

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
        return {
            "training data": self.train.digest(),
            "batch_size": texts.batch_size,
            "sequence_length": texts.sequence_length,
        }

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
        state = self.state or QRNNCache(self.model.config.decoder_layers)
        output = model(
            input_ids=batch.inputs["input_ids"],
            shift_labels=batch.inputs["labels"],
            past_key_values=state,
            num_items_in_batch=1,
            smoothing=smoothing,
        )
        self.state = _resumed(_tensors(state), self.model)  # without its graph
        return output

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give the state of this process's rows."""
        kept = {} if self.state is None else _tensors(self.state)
        return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the state of this process's rows."""
        self.state = _resumed(tensors, self.model) if tensors else None

    def validate(
        self, model: nn.Module, processes: Processes, device: torch.device
    ) -> dict[str, Any]:
        """Measure the validation text."""
        return self._measure(model, self.valid, device)

    def finish(self, trainer: Trainer, folder: RunFolder) -> None:
        """Measure the test text with the best model, reloaded; write test.json."""
        if not len(self.test.tokens):
            return
        trainer.accelerator.wait_for_everyone()
        device = trainer.accelerator.device
        best = QRNNForCausalLM.from_pretrained(folder.path).to(device)
        record = self._measure(best, self.test, device)
        folder.write_json("test.json", {"tokens": len(self.test.tokens), **record})
        logger.info("test: %s", json.dumps(record))

    def _measure(
        self, model: nn.Module, stream: TokenStream, device: torch.device
    ) -> dict[str, Any]:
        nats = total_nats(model, self.model.config, stream.tokens.to(device))
        loss = nats / len(stream.tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_character": nats / math.log(2) / stream.num_chars,
        }


@torch.no_grad()
def total_nats(model: nn.Module, config: Any, tokens: torch.Tensor) -> float:
    """Give the negative log-likelihood of a stream (N,), each token from all before it.

    The first one comes after the end of a line. Every process computes all of it: the parts of one
    stream follow each other, and a sharded model wants every process in every call.
    """
    was_training = model.training
    model.eval()
    start = torch.full_like(tokens[:1], config.eos_token_id)
    inputs, state, nats = torch.cat([start, tokens[:-1]]), QRNNCache(config.decoder_layers), 0.0
    for first in range(0, len(tokens), _STEPS):
        part = slice(first, first + _STEPS)
        output = model(
            input_ids=inputs[None, part],
            shift_labels=tokens[None, part],
            past_key_values=state,
            num_items_in_batch=1,
        )
        nats += float(output.loss)
    model.train(was_training)
    return nats


def _read(texts: TextOptions, split: str) -> list[str]:
    path = getattr(texts, f"{split}_file")
    if path is None:
        if split == "test":
            return []
        raise ValueError(f"`{split}_file` must be a text, but is not given.")
    with typed(path=f"{split}_file"):
        lines = read_lines(path)
    if not lines:
        raise ValueError(f"`{split}_file` must hold a line, but {path!r} is empty.")
    return lines


def _tensors(state: QRNNCache) -> dict[str, torch.Tensor]:
    """Give what a state holds, by layer, detached from its graph."""
    found: dict[str, torch.Tensor] = {}
    for index in range(len(state.layers)):
        layer = state.layer(index).current_state()
        assert layer is not None, "a state after a step"
        found |= {f"{index}.{name}": x.detach() for name, x in layer._asdict().items()}
    return found


def _resumed(tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> QRNNCache:
    """Make the state of `_tensors`, where the model is."""
    state = QRNNCache(model.config.decoder_layers)
    for index in range(len(state.layers)):
        parts = (tensors[f"{index}.{name}"].to(model.device) for name in LayerState._fields)
        state.layer(index).store(LayerState(*parts), 0)
    return state
