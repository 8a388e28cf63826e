"""Classifiers to compare with: a stack of LSTM layers, and a Transformer.

Each is the QRNN's own classifier with another stack in the place of its encoder, and about as many
parameters: embedding, pooling, output layer and loss are the QRNN's. Padding changes no result.

Shapes: B batch, S source length, E embedding, H units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from equal_sizes import control_config, count_parameters, nearest, nearest_width, quietly
from language_model_controls import HEADS, TransformerLayer, ages_of, make_lstm
from torch import nn

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.model.blocks_qrnn import embedding_dropout
from hf_qrnn.model.connect_qrnn import make_dropout
from hf_qrnn.model.encoder_qrnn import QRNNEncoderOutput
from hf_qrnn.model.padding_qrnn import hide_pads, real_steps
from hf_qrnn.training.card_words import WORDS, CardWords
from hf_qrnn.training.classification_task import ClassificationTask
from hf_qrnn.training.task import Task


class LSTMEncoder(nn.Module):
    """One call of `nn.LSTM` for all layers of a direction, with dropout where the QRNN has it.

    Two directions are two stacks, joined at the end, which of one layer is `nn.LSTM` of two
    directions. Between layers dropout is nn.LSTM's own. The paper's LSTM is densely connected,
    which one call cannot be.
    """

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.reversed = [config.reverse_source]
        if config.encoder_bidirectional:
            self.reversed.append(not config.reverse_source)
        self.dropout = embedding_dropout(config)
        units = config.hidden_size // len(self.reversed)
        sizes = (config.embedding_size, units, config.encoder_layers)
        self.stacks = nn.ModuleList(make_lstm(*sizes, config.dropout) for _ in self.reversed)
        self.last = make_dropout(config.dropout, locked=config.locked_dropout)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> QRNNEncoderOutput:
        """Encode (B, S, E) as `QRNNEncoder.forward` does."""
        x, mask = self.dropout(inputs_embeds), _mask(inputs_embeds, attention_mask)
        outputs = []
        for lstm, reverse in zip(self.stacks, self.reversed, strict=True):
            # Pads behind all else change nothing before them. Packed rows, which nn.LSTM's own two
            # directions would need, are many times as slow on a CPU.
            order = _processing_order(x, mask, reverse=reverse)[:, :, None]  # (B, S, 1)
            out, _ = lstm(x.gather(1, order.expand_as(x)))  # (B, S, H or H/2)
            outputs.append(torch.empty_like(out).scatter(1, order.expand_as(out), out))
        out = hide_pads(self.last(torch.cat(outputs, dim=-1)), mask)  # (B, S, H)
        return _output(out, x, output_hidden_states)


def _mask(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return where steps are real, (B, S); None where all are."""
    return real_steps(attention_mask, x.shape[1], x.shape[0], exact=True)


def _processing_order(x: torch.Tensor, mask: torch.Tensor | None, *, reverse: bool) -> torch.Tensor:
    """Give the places (B, S) of the real steps in processing order, and then those of the pads."""
    length = x.shape[1]
    steps = torch.arange(length, device=x.device).expand(x.shape[:2])  # (B, S)
    times = steps.flip(1) if reverse else steps
    if mask is not None:
        times = torch.where(mask, times, length + steps)
    return times.argsort(dim=1)


class TransformerEncoder(nn.Module):
    """Layers of attention over the whole text, or without two directions over what was read.

    Embeddings keep their width, so that word vectors fit; a linear layer brings them to the
    blocks'. Positions are distances: pads before a text change nothing.
    """

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.both, self.reverse = config.encoder_bidirectional, config.reverse_source
        self.dropout = embedding_dropout(config)
        self.inputs = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.hidden_size,
                config.dropout,
                locked=config.locked_dropout,
                inner_size=config.feed_forward_size or None,
            )
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> QRNNEncoderOutput:
        """Encode (B, S, E) as `QRNNEncoder.forward` does."""
        embedded, mask = self.dropout(inputs_embeds), _mask(inputs_embeds, attention_mask)
        x, allowed = self.inputs(embedded), self._allowed(embedded, mask)  # (B, S, H)
        for layer in self.layers:
            x = layer(x, allowed)
        return _output(hide_pads(self.norm(x), mask), embedded, output_hidden_states)

    def _allowed(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Tell which step may attend to which, (B, 1, S, S); None is all to all."""
        ages = ages_of(x.shape[1], 0, x.device)  # (S, S)
        read = None if self.both else (ages <= 0 if self.reverse else ages >= 0)
        if mask is None:
            return read
        real = mask[:, None, None]  # (B, 1, 1, S)
        # A pad attends to itself, so that no row of the softmax is empty.
        return (real if read is None else real & read) | (ages == 0)


def _output(last: torch.Tensor, first: torch.Tensor, wants_all: bool) -> QRNNEncoderOutput:
    hidden = (first, last) if wants_all else None
    return QRNNEncoderOutput(last_hidden_state=last, hidden_states=hidden)


# ------------------------------------------------------------------ models and tasks


class ControlForSequenceClassification(QRNNForSequenceClassification):
    """The QRNN's own classifier with another stack in it.

    The end of its name, and of those of its classes, is where transformers reads the loss.
    """

    _auto_class = None  # no Auto class knows it, and a folder of it carries no code
    stack: ClassVar[type[nn.Module]]

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__(config)
        self.model.encoder = type(self).stack(self.config)

    @classmethod
    def like(cls, model: QRNNForSequenceClassification) -> ControlForSequenceClassification:
        """Make one of about as many parameters as the QRNN `model`, and its dropout."""
        with quietly():
            return cls._like(model)

    @classmethod
    def _like(cls, model: QRNNForSequenceClassification) -> ControlForSequenceClassification:
        raise NotImplementedError


class LSTMForSequenceClassification(ControlForSequenceClassification):
    """A classifier of LSTM layers."""

    stack = LSTMEncoder

    @classmethod
    def _like(cls, model: QRNNForSequenceClassification) -> ControlForSequenceClassification:
        def of(width: int) -> ControlForSequenceClassification:
            return cls(control_config(model.config, hidden_size=width))

        step = 2 if model.config.encoder_bidirectional else 1  # two directions share the width
        found: ControlForSequenceClassification = nearest(of, count_parameters(model), step=step)
        return found


class TransformerForSequenceClassification(ControlForSequenceClassification):
    """A classifier of attention."""

    stack = TransformerEncoder

    @classmethod
    def _like(cls, model: QRNNForSequenceClassification) -> ControlForSequenceClassification:
        def of(width: int, inner: int | None = None) -> ControlForSequenceClassification:
            sizes = {"hidden_size": width, "feed_forward_size": inner or 4 * width}
            return cls(control_config(model.config, **sizes))

        # The heads make the width coarse; the width of the feed-forward layers makes up for it.
        number = count_parameters(model)
        width = nearest_width(of, number, step=2 * HEADS)
        found: ControlForSequenceClassification = nearest(
            lambda inner: of(width, inner), number, step=1
        )
        return found


class ControlTask(ClassificationTask):
    """Classification with another model in it: what is not written here is the task's own."""

    # Cards know the QRNN's classes alone, and would take the words of a model without a head.
    words: ClassVar[CardWords | None] = WORDS["text-classification"]
    kind: ClassVar[type[ControlForSequenceClassification]]
    # It begins with no trained QRNN: --init_from is not offered.
    find_base = Task.find_base

    def make_model(self, options: Any, **fields: Any) -> ControlForSequenceClassification:
        """Make the control of the QRNN that the flags describe."""
        model: Any = super().make_model(options, **fields)
        return type(self).kind.like(model)

    def illustrate(self, folder: Path) -> None:
        """Draw nothing: the picture is of a QRNN's states."""


class LSTMTask(ControlTask):
    """Classification by an LSTM."""

    kind = LSTMForSequenceClassification


class TransformerTask(ControlTask):
    """Classification by a Transformer."""

    kind = TransformerForSequenceClassification
