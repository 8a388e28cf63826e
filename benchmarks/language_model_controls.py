"""Language models to compare with: a stack of LSTM layers, and a Transformer.

Each is the QRNN's own language model with another stack in the place of its decoder, and about as
many parameters. Its state travels in the same cache, so that whatever trains, measures and resumes
the QRNN does so with it.

Shapes: B batch, T time, E embedding, H units, M remembered steps, N heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from equal_sizes import control_config, count_parameters, nearest, quietly
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.model.blocks_qrnn import embedding_dropout
from hf_qrnn.model.connect_qrnn import make_dropout
from hf_qrnn.model.layers_qrnn import LayerState
from hf_qrnn.training.card_words import WORDS, CardWords
from hf_qrnn.training.language_model_task import LanguageModelTask

HEADS = 4
MEMORY = 256
"""The steps before its own that a Transformer's token attends to, in training as in measuring."""


def make_lstm(input_size: int, hidden_size: int, num_layers: int, dropout: float) -> nn.LSTM:
    """Make a stack of LSTM layers, batch first, whose forget gates begin open, as is usual."""
    between = dropout if num_layers > 1 else 0.0
    lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=between)
    with torch.no_grad():
        for index in range(num_layers):
            bias = getattr(lstm, f"bias_ih_l{index}")  # input, forget, cell, output
            bias[hidden_size : 2 * hidden_size] = 1.0
    return lstm


class LSTMStack(nn.Module):
    """One call of `nn.LSTM` for all layers, with dropout where the QRNN has it.

    Locked dropout is that of embeddings and of the last layer; between layers it is nn.LSTM's own.
    """

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.dropout = embedding_dropout(config)
        sizes = (config.embedding_size, config.hidden_size, config.decoder_layers)
        self.lstm = make_lstm(*sizes, config.dropout)
        self.last = make_dropout(config.dropout, locked=config.locked_dropout)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run over (B, T, E), as `QRNNDecoder.forward` does; there are no pads."""
        x, start = self.dropout(inputs_embeds), None
        states = _states(past_key_values)
        if states:  # h (B, 1, H) stands where a QRNN has inputs
            h = torch.cat([state.inputs for state in states], dim=1).transpose(0, 1)
            start = (h.contiguous(), torch.stack([state.c for state in states]))  # (L, B, H)
        out, (h, c) = self.lstm(x, start)
        if past_key_values is not None:
            for index in range(len(past_key_values.layers)):
                state = LayerState(h[index][:, None], c[index])
                past_key_values.layer(index).store(state, x.shape[1])
        return _output(self.last(out), x, past_key_values, output_hidden_states)


class TransformerLayer(nn.Module):
    """Attention with rotary positions, and a feed-forward layer; pre-norm.

    Args:
        width: H.
        dropout: On what either adds.
        locked: Whether that zeroes the same channels at all steps.
        inner_size: Width of the feed-forward layer, None for 4 H.
    """

    def __init__(
        self, width: int, dropout: float, *, locked: bool, inner_size: int | None = None
    ) -> None:
        super().__init__()
        inner = 4 * width if inner_size is None else inner_size
        self.attention_norm, self.norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = make_dropout(dropout, locked=locked)

    def forward(
        self,
        x: torch.Tensor,
        allowed: torch.Tensor | None,
        memory: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map (B, T, H) to (B, T, H).

        Args:
            x: (B, T, H).
            allowed: Which step may attend to which, as (B, N, T, M + T) or what becomes that by
                repetition; None is all to all.
            memory: What this layer read before, (B, M, H).
        """
        rows, length, width = x.shape
        seen = x if memory is None else torch.cat([memory.to(x.dtype), x], dim=1)
        heads = self.query_key_value(self.attention_norm(seen))
        heads = heads.view(rows, -1, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k = _rotate(heads[0])[:, :, -length:], _rotate(heads[1])  # (B, N, T or M + T, H / N)
        found = nn.functional.scaled_dot_product_attention(q, k, heads[2], attn_mask=allowed)
        x = x + self.dropout(self.out(found.transpose(1, 2).reshape(x.shape)))
        inner = nn.functional.gelu(self.inner(self.norm(x)))
        result: torch.Tensor = x + self.dropout(self.outer(inner))
        return result


def ages_of(length: int, before: int, device: torch.device) -> torch.Tensor:
    """Count how many steps each of `length` steps is behind those and `before` more: (T, M + T)."""
    steps = torch.arange(before + length, device=device)
    return steps[before:, None] - steps


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """Turn (B, N, T, D) by angles that grow with the step: products see distances alone."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * rates  # (T, D / 2)
    a, b = x[..., :half], x[..., half:]
    turned = [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
    return torch.cat(turned, dim=-1).to(x.dtype)


class TransformerStack(nn.Module):
    """A Transformer that remembers `MEMORY` inputs of every layer (as Transformer-XL does)."""

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.dropout = embedding_dropout(config)
        self.layers = nn.ModuleList(
            TransformerLayer(config.hidden_size, config.dropout, locked=config.locked_dropout)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run over (B, T, E), as `QRNNDecoder.forward` does; there are no pads."""
        first = x = self.dropout(inputs_embeds)
        states = _states(past_key_values)
        before = states[0].inputs.shape[1] if states else 0
        ages = ages_of(x.shape[1], before, x.device)
        allowed = (ages >= 0) & (ages <= MEMORY)  # (T, M + T)
        for index, layer in enumerate(self.layers):
            memory = states[index].inputs if states else None
            if past_key_values is not None:
                seen = x if memory is None else torch.cat([memory.to(x.dtype), x], dim=1)
                state = LayerState(seen[:, -MEMORY:], x.new_zeros(x.shape[0], 1))
                past_key_values.layer(index).store(state, x.shape[1])
            x = layer(x, allowed, memory)
        return _output(self.norm(x), first, past_key_values, output_hidden_states)


def _states(cache: Any) -> list[LayerState]:
    """Return the layers' states, none before the first step."""
    found = [cache.layer(i).current_state() for i in range(len(cache.layers))] if cache else []
    return [state for state in found if state is not None]


def _output(
    last: torch.Tensor, first: torch.Tensor, cache: Any, wants_all: bool
) -> BaseModelOutputWithPastAndCrossAttentions:
    return BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=last,
        past_key_values=cache,
        hidden_states=(first, last) if wants_all else None,
    )


# ------------------------------------------------------------------ models and tasks


class ControlLanguageModel(QRNNForCausalLM):
    """The QRNN's own language model with another stack in it."""

    _auto_class = None  # no Auto class knows it, and a folder of it carries no code
    stack: ClassVar[type[nn.Module]]
    step: ClassVar[int]
    """What its width is a multiple of."""

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__(config)
        self.model.decoder = type(self).stack(self.config)

    @classmethod
    def like(cls, model: QRNNForCausalLM) -> ControlLanguageModel:
        """Make one of about as many parameters as the QRNN `model`, and its dropout."""
        equal = model.config.embedding_size == model.config.hidden_size
        same = equal or cls is TransformerLanguageModel  # whose blocks add to their inputs

        def of(width: int) -> ControlLanguageModel:
            sizes = {"hidden_size": width} | ({"embedding_size": width} if same else {})
            return cls(control_config(model.config, **sizes))

        with quietly():
            found: ControlLanguageModel = nearest(of, count_parameters(model), step=cls.step)
        return found


class LSTMLanguageModel(ControlLanguageModel):
    """A language model of LSTM layers."""

    stack, step = LSTMStack, 1


class TransformerLanguageModel(ControlLanguageModel):
    """A language model of attention over a window."""

    stack, step = TransformerStack, 2 * HEADS


class ControlTask(LanguageModelTask):
    """Language modelling with another model in it: what is not written here is the task's own."""

    # Cards know the QRNN's classes alone, and would take the words of a model without a head.
    words: ClassVar[CardWords | None] = WORDS["text-generation"]
    kind: ClassVar[type[ControlLanguageModel]]

    def make_model(self, options: Any) -> ControlLanguageModel:
        """Make the control of the QRNN that the flags describe."""
        model: Any = super().make_model(options)
        return type(self).kind.like(model)


class LSTMTask(ControlTask):
    """Language modelling by an LSTM."""

    kind = LSTMLanguageModel


class TransformerTask(ControlTask):
    """Language modelling by a Transformer."""

    kind = TransformerLanguageModel
