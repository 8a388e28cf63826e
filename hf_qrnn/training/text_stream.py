"""Text as one stream of tokens, read in parts: batches, measuring and writing from a carried state.

The state is an argument and a result. Nothing of a part is kept but its state, whose size does not
depend on how much was read.

    state = begin(model)
    for tokens in parts:  # each (B, N), of any length
        nats, state = read_on(model, tokens, state)

Shapes: N tokens of the stream, B rows, T steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_qrnn.data.batching import Batch
from hf_qrnn.data.tokenization import encode_batch
from hf_qrnn.model.cache_qrnn import QRNNCache
from hf_qrnn.model.layers_qrnn import LayerState

STEPS = 1024
"""The steps of one call where a text is measured; whatever it is, the loss is the same."""


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


# ------------------------------------------------------------------ states


@dataclass(frozen=True)
class StreamState:
    """The point in a text up to which it was read.

    Attributes:
        cache: The layers' states, behind all tokens but the last; never changed, but copied.
        last: (B, 1), the last token, which the next one is predicted from.
    """

    cache: QRNNCache
    last: torch.Tensor


def begin(model: Any, num_rows: int = 1) -> StreamState:
    """Begin to read: the first token is what follows the end of a line."""
    last = torch.full((num_rows, 1), model.config.eos_token_id, device=model.device)
    return StreamState(QRNNCache(model.config.decoder_layers), last)


def tensors_of(cache: QRNNCache) -> dict[str, torch.Tensor]:
    """Give what a cache holds, by layer, detached from its graph; nothing of an empty one."""
    found: dict[str, torch.Tensor] = {}
    for index in range(len(cache.layers)):
        layer = cache.layer(index).current_state()
        if layer is not None:
            found |= {f"{index}.{name}": x.detach() for name, x in layer._asdict().items()}
    return found


def cache_of(tensors: Mapping[str, torch.Tensor], model: Any) -> QRNNCache:
    """Make the cache of `tensors_of`, where the model is."""
    cache = QRNNCache(model.config.decoder_layers)
    for index in range(len(cache.layers) if tensors else 0):
        parts = (tensors[f"{index}.{name}"].to(model.device) for name in LayerState._fields)
        cache.layer(index).store(LayerState(*parts), 0)
    return cache


# ------------------------------------------------------------------ reading and writing


@torch.no_grad()
def read_on(
    model: Any, tokens: torch.Tensor, state: StreamState, *, steps: int = STEPS
) -> tuple[torch.Tensor, StreamState]:
    """Read the next part of a text, each token predicted from all before it.

    Args:
        model: A language model, in evaluation mode; as prepared for training, or plain.
        tokens: (B, N), where the model is.
        state: What the part before left; it stays as it is.
        steps: Steps of one call, which bound the memory.

    Returns:
        The negative log-likelihood of the part's tokens, a 0-d float64 tensor in nats, and the
        state behind them.
    """
    inner = getattr(model, "module", model)
    cache = cache_of(tensors_of(state.cache), inner)
    inputs = torch.cat([state.last, tokens[:, :-1]], dim=1)
    nats = torch.zeros((), dtype=torch.float64)
    for first in range(0, tokens.shape[1], steps):
        part = slice(first, first + steps)
        output = model(
            input_ids=inputs[:, part],
            shift_labels=tokens[:, part],
            past_key_values=cache,
            num_items_in_batch=1,
        )
        nats += output.loss.double().cpu()
    return nats, StreamState(cache, tokens[:, -1:]) if tokens.shape[1] else state


def total_nats(model: nn.Module, plain: Any, tokens: torch.Tensor) -> float:
    """Give the negative log-likelihood of a stream (N,), each token from all before it.

    The first one comes after the end of a line. Every process computes all of it: the parts of one
    stream follow each other, and a sharded model wants every process in every call.

    Args:
        model: The model, as prepared for training.
        plain: The same without what wraps it.
        tokens: The stream.
    """
    was_training = model.training
    model.eval()
    state, nats = begin(plain), 0.0
    for part in tokens.split(STEPS):
        more, state = read_on(model, part[None], state, steps=STEPS)
        nats += float(more)
    model.train(was_training)
    return nats


@torch.no_grad()
def write_on(
    model: Any,
    number: int,
    state: StreamState,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, StreamState]:
    """Draw the next tokens of a text, one at a time.

    Args:
        model: A language model, in evaluation mode.
        number: N, how many tokens.
        state: Where the text stands; it stays as it is.
        temperature: What logits are divided by; 0 takes the likeliest token.
        generator: Of the random numbers, on the CPU.

    Returns:
        The tokens (B, N), and the state behind them.
    """
    cache, last = cache_of(tensors_of(state.cache), model), state.last
    drawn = []
    for _ in range(number):
        output = model(input_ids=last, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].float().cpu()  # (B, V)
        if temperature == 0.0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            shares = (logits / temperature).softmax(-1)
            chosen = torch.multinomial(shares, 1, generator=generator)
        last = chosen.to(last.device)
        drawn.append(last)
    tokens = torch.cat(drawn, dim=1) if drawn else state.last[:, :0]
    return tokens, StreamState(cache, last)
