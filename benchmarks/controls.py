"""Models to compare with: a QRNN that pools in a Python loop, and a translator of LSTM layers.

Shapes: B batch, T (target) time, S source length, E input channels, H units, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from hf_qrnn import QRNN


class LoopQRNN(nn.Module):
    """A layer of k = 2 and fo-pooling, computed as torchqrnn does on a CPU.

    Written from its description: time-major; the previous inputs concatenated to the inputs and one
    linear layer for all gates; each activation an operation of its own; a loop over time of
    elementwise operations that autograd records; a stack of the results. Its gate f writes where
    the paper's keeps, c_t = f_t . z_t + (1 - f_t) . c_{t-1}.

    Args:
        layer: A `QRNN` of one layer whose function this one has too.
    """

    def __init__(self, layer: QRNN) -> None:
        super().__init__()
        given = (layer.num_layers, layer.bidirectional, layer.kernel_size, layer.pooling)
        if given != (1, False, 2, "fo") or not layer.bias:
            raise ValueError(
                "`layer` must have one layer, one direction, a bias, `kernel_size` 2 and `pooling` "
                f"'fo', but has {given}, and `bias` {layer.bias}."
            )
        size, convolution = layer.hidden_size, layer.l0.convolution
        self.linear = nn.Linear(2 * layer.input_size, 3 * size, dtype=convolution.weight.dtype)
        with torch.no_grad():
            for name, parameter in self.linear.named_parameters():
                values = getattr(convolution, name).detach().clone()
                values[size : 2 * size].neg_()  # 1 - sigmoid(x) = sigmoid(-x)
                parameter.copy_(values)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (T, B, E) to h (T, B, H) and the last c (B, H)."""
        previous = torch.cat([torch.zeros_like(x[:1]), x[:-1]])  # (T, B, E)
        gates = self.linear(torch.cat([previous, x], dim=2))  # (T, B, 3H)
        z, f, o = gates.chunk(3, dim=2)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        c: torch.Tensor | None = None
        states = []
        for written, f_t in zip((f * z).unbind(0), f.unbind(0), strict=True):
            c = written if c is None else written + (1 - f_t) * c
            states.append(c)
        return o * torch.stack(states), states[-1]


class TranslatorOutput(NamedTuple):
    """Loss in nats per token, and logits (T, B, V)."""

    loss: torch.Tensor
    logits: torch.Tensor


class LSTMTranslator(nn.Module):
    """The paper's translation model with LSTM layers in place of quasi-recurrent ones.

    As in section 3.3 of 1611.01576: one embedding, the source reversed, as many decoder layers as
    encoder layers, each starting from the final state of its encoder layer, and the attention of
    Eq. 8 behind the last one: dot product, h = W_k k + W_c d with d the decoder's output. Both
    stacks are one call of `nn.LSTM` over the whole sequence, time first, as it likes it.
    """

    def __init__(self, vocab_size: int = 187, hidden_size: int = 320, num_layers: int = 4) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocab_size, hidden_size)
        self.encoder = nn.LSTM(hidden_size, hidden_size, num_layers)
        self.decoder = nn.LSTM(hidden_size, hidden_size, num_layers)
        self.context = nn.Linear(hidden_size, hidden_size, bias=False)  # W_k
        self.cell = nn.Linear(hidden_size, hidden_size, bias=False)  # W_c
        self.lm_head = nn.Linear(hidden_size, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, **unused: Any
    ) -> TranslatorOutput:
        """Train on ids (B, S) and labels (B, T); the decoder reads the labels shifted right."""
        source = self.shared(input_ids.flip(1).t())  # (S, B, H)
        start = torch.zeros_like(labels[:, :1])
        # A pad's label is -100, which the loss passes by and an embedding has no row for.
        shifted = torch.cat([start, labels[:, :-1]], dim=1).clamp(min=0)  # (B, T)
        states, final = self.encoder(source)
        d, _ = self.decoder(self.shared(shifted.t()), final)  # (T, B, H)
        keys, query = states.transpose(0, 1), d.transpose(0, 1)
        k = nn.functional.scaled_dot_product_attention(
            query[:, None], keys[:, None], keys[:, None], scale=1.0
        )[:, 0]  # (B, T, H)
        logits = self.lm_head(self.context(k.transpose(0, 1)) + self.cell(d))  # (T, B, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.t().flatten())
        return TranslatorOutput(loss, logits)
