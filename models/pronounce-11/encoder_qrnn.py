"""The encoder: a stack of layers that reads the source (section 2 of arXiv 1611.01576).

Shapes: B batch, S source length, E embedding, H units, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .blocks_qrnn import (
    Connection,
    FeedForward,
    embedding_dropout,
    make_connection,
    make_feed_forward,
    make_final_norm,
)
from .configuration_qrnn import QRNNConfig
from .connect_qrnn import normalize
from .layers_qrnn import QRNNLayer
from .padding_qrnn import hide_pads, last_step, max_of_steps, mean_of_steps, real_steps


class QRNNEncoderLayer(GradientCheckpointingLayer):
    """One encoder layer: one direction, or two of H/2 units side by side.

    Args:
        layers: One QRNNLayer, or a forward and a backward one.
        connection: Norm, dropout and residual around them.
        feed_forward: Block behind them, or None.
        dense: Concatenate the input to the output (section 2.2).
    """

    def __init__(
        self,
        layers: list[QRNNLayer],
        connection: Connection,
        feed_forward: FeedForward | None,
        *,
        dense: bool,
    ) -> None:
        super().__init__()
        self.directions = nn.ModuleList(layers)
        self.reversed = [layer.reverse for layer in layers]
        self.connection = connection
        self.feed_forward = feed_forward
        self.dense = dense

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, S, E) to the output (B, S, H or E + H) and h~ (B, H) of Eq. 7.

        h~ is the pooled output at the last processed real step, before dropout and connections.
        """
        x = self.connection.before(hidden_states)
        outputs, final = [], []
        for layer, reverse in zip(self.directions, self.reversed, strict=True):
            h = layer(x, mask).h
            outputs.append(h)
            final.append(last_step(h, mask, reverse=reverse))
        out, _ = self.connection.after(hidden_states, torch.cat(outputs, dim=-1))  # (B, S, H)
        if self.feed_forward is not None:
            out = self.feed_forward(out)
        if self.dense:
            out = torch.cat([hidden_states, out], dim=-1)  # (B, S, E + H)
        return out, torch.cat(final, dim=-1)


@dataclass
class QRNNEncoderOutput(BaseModelOutput):
    """Output of the encoder.

    Args:
        last_hidden_state: The encoding (B, S, H), in source order, zero at pads.
        final_states: h~ of Eq. 7, (B, L, H): every layer's output at its last processed step.
        hidden_states: The embeddings and every layer's output, where asked.
    """

    final_states: torch.Tensor | None = None

    # No field: of how many rows of the decoder each row is the source; they are neighbours.
    rows_each: ClassVar[int] = 1


def shared_encoding(encoded: Any, rows_each: int) -> QRNNEncoderOutput:
    """Return what an encoder gave as the source of `rows_each` rows of the decoder each."""
    shared = QRNNEncoderOutput(
        **{name: getattr(encoded, name, None) for name in ("last_hidden_state", "hidden_states")},
        attentions=getattr(encoded, "attentions", None),
        final_states=encoded.final_states,
    )
    vars(shared)["rows_each"] = rows_each * getattr(encoded, "rows_each", 1)
    return shared


class QRNNEncoder(nn.Module):
    """The encoder's stack over embeddings (B, S, E)."""

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.reverse = config.reverse_source
        self.dropout = embedding_dropout(config)
        self.layers = nn.ModuleList()
        width = config.embedding_size
        kernel_sizes = config.kernel_sizes("encoder")
        for index, kernel_size in enumerate(kernel_sizes):
            directions = [config.reverse_source]
            if config.encoder_bidirectional:
                directions.append(not config.reverse_source)
            layers = [
                QRNNLayer(
                    width,
                    config.hidden_size // len(directions),
                    kernel_size,
                    pooling=config.pooling,
                    zoneout=config.zoneout,
                    causal=config.encoder_causal,
                    reverse=reverse,
                    pool_backend=config.pool_backend,
                )
                for reverse in directions
            ]
            dense = config.dense_connections and index < len(kernel_sizes) - 1
            self.layers.append(
                QRNNEncoderLayer(
                    layers, make_connection(config, width), make_feed_forward(config), dense=dense
                )
            )
            width = config.hidden_size + (width if dense else 0)
        self.norm = make_final_norm(config)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> QRNNEncoderOutput:
        """Encode `inputs_embeds` (B, S, E); `attention_mask` (B, S) is 1 where a token is real."""
        batch, length = inputs_embeds.shape[:2]
        mask = real_steps(attention_mask, length, batch, exact=True)
        hidden_states = hide_pads(self.dropout(inputs_embeds), mask)
        collected = [hidden_states]
        finals = []
        for layer in self.layers:
            hidden_states, h_tilde = layer(hidden_states, mask)
            collected.append(hidden_states)
            finals.append(h_tilde)
        hidden_states = normalize(self.norm, hidden_states, for_products=False)
        collected[-1] = hidden_states
        return QRNNEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(collected) if output_hidden_states else None,
            final_states=torch.stack(finals, dim=1),  # (B, L, H)
        )


def last_of_directions(
    states: torch.Tensor, mask: torch.Tensor | None, config: QRNNConfig
) -> torch.Tensor:
    """Return the encoding (B, H) at the last processed step, of each direction its own half."""
    if not config.encoder_bidirectional:
        return last_step(states, mask, reverse=config.reverse_source)
    halves = states.chunk(2, dim=-1)
    ways = (config.reverse_source, not config.reverse_source)
    return torch.cat(
        [last_step(half, mask, reverse=way) for half, way in zip(halves, ways, strict=True)], -1
    )


def pool_steps(states: torch.Tensor, mask: torch.Tensor | None, config: QRNNConfig) -> torch.Tensor:
    """Return what the classifier classifies, (B, `pooled_size`), of the encoding (B, S, H)."""
    if config.classifier_pooling == "last":
        return last_of_directions(states, mask, config)
    if config.classifier_pooling == "mean":
        return mean_of_steps(states, mask)
    if config.classifier_pooling == "max":
        return max_of_steps(states, mask)
    return torch.cat([mean_of_steps(states, mask), max_of_steps(states, mask)], -1)  # (B, 2H)


def pooled_size(config: QRNNConfig) -> int:
    """Return the width of what `pool_steps` returns."""
    return config.hidden_size * (2 if config.classifier_pooling == "mean_max" else 1)
