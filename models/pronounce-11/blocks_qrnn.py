"""The parts around a layer: normalisation, dropout, residual and dense connections, feed-forward.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

import torch
from torch import nn

from .attention_qrnn import RMS_NORM_EPS
from .configuration_qrnn import QRNNConfig
from .connect_qrnn import Connected, join, make_dropout, normalize
from .products_qrnn import apply_linear


class FeedForward(nn.Module):
    """Pre-norm residual gated feed-forward block: x + W_out (silu(W_gate n) . W_in n)."""

    def __init__(
        self, hidden_size: int, inner_size: int, dropout: float, *, locked: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=RMS_NORM_EPS)
        self.gate_and_in = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.out = nn.Linear(inner_size, hidden_size, bias=False)
        self.dropout = make_dropout(dropout, locked=locked)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, H) to (B, T, H)."""
        gate, inner = apply_linear(self.gate_and_in, normalize(self.norm, x)).chunk(2, dim=-1)
        h = apply_linear(self.out, nn.functional.silu(gate) * inner)
        return join(x, h, self.dropout).out


class Connection(nn.Module):
    """The connection around every layer: norm before, dropout, then residual, dense or nothing.

    Dropout acts once, on the layer's own output. A residual skips a layer whose widths differ.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dropout: float,
        residual: bool,
        rms_norm: bool,
        locked: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(input_size, eps=RMS_NORM_EPS) if rms_norm else nn.Identity()
        self.dropout = make_dropout(dropout, locked=locked)
        self.residual = residual and input_size == hidden_size

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return normalize(self.norm, x)

    def after(self, x: torch.Tensor, h: torch.Tensor, norm: nn.Module | None = None) -> Connected:
        """Join the layer's input (B, T, E) and own output (B, T, H) to (B, T, H).

        `norm` is that of the block behind it, which saves a pass over the sum.
        """
        if self.residual:
            return join(x, h, self.dropout, norm)
        out = self.dropout(h)
        return Connected(out, None if norm is None else normalize(norm, out))


def embedding_dropout(config: QRNNConfig) -> nn.Dropout:
    """Make the dropout of the embeddings."""
    given = config.embedding_dropout
    return make_dropout(
        float(config.dropout if given is None else given), locked=config.locked_dropout
    )


def make_connection(config: QRNNConfig, input_size: int) -> Connection:
    """Make the connection around a layer that reads `input_size` channels."""
    return Connection(
        input_size,
        config.hidden_size,
        dropout=config.dropout,
        residual=config.residual,
        rms_norm=config.rms_norm,
        locked=config.locked_dropout,
    )


def make_feed_forward(config: QRNNConfig) -> FeedForward | None:
    """Make the feed-forward block behind a layer, if the config has one."""
    if config.feed_forward_size == 0:
        return None
    return FeedForward(
        config.hidden_size,
        config.feed_forward_size,
        config.dropout,
        locked=config.locked_dropout,
    )


def make_final_norm(config: QRNNConfig) -> nn.Module:
    """Make the norm behind the last layer, if the config has norms."""
    return nn.RMSNorm(config.hidden_size, eps=RMS_NORM_EPS) if config.rms_norm else nn.Identity()
