"""The encoder's and the decoder's stacks of layers, built from a config.

Shapes: B batch, S source length, T target length, E embedding, H units, L layers, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from .attention_qrnn import RMS_NORM_EPS, AttentionBlock, Memory, OutputAttention
from .cache_qrnn import QRNNCache, QRNNCacheLayer
from .checks_qrnn import check_mask, check_rows, may_look
from .configuration_qrnn import QRNNConfig
from .internals_qrnn import is_transformed
from .layers_qrnn import (
    Connection,
    DecoderLayerOutput,
    FeedForward,
    QRNNDecoderLayer,
    QRNNEncoderLayer,
    QRNNLayer,
    hide_pads,
)


@dataclass
class QRNNEncoderOutput(BaseModelOutput):
    """Output of the encoder.

    Args:
        last_hidden_state: The encoding (B, S, H), in source order, zero at pads.
        final_states: h~ of Eq. 7, (B, L, H): every layer's output at its last processed step.
        hidden_states: The embeddings and every layer's output, where asked.
    """

    final_states: torch.Tensor | None = None


def real_steps(
    attention_mask: torch.Tensor | None,
    length: int,
    batch: int | None = None,
    *,
    exact: bool = False,
    name: str = "attention_mask",
) -> torch.Tensor | None:
    """A boolean mask (B, `length`) of the last `length` columns, None where nothing is a pad.

    Raises:
        ValueError: If the mask is not (B, at least `length`), with `exact` not (B, `length`), or
            a row has a hole in it.
    """
    if attention_mask is None:
        return None
    check_mask(name, attention_mask, length, batch, exact=exact)
    if not exact:
        attention_mask = attention_mask[:, attention_mask.shape[1] - length :]
    mask = attention_mask.bool()
    if not may_look(mask) or mask.device.type == "meta" or is_transformed():
        return mask
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    capturing = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    if length > 1 and not capturing:
        starts = mask[:, :1].long().sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
        if bool((starts > 1).any()):
            row = int((starts > 1).nonzero()[0])
            raise ValueError(
                f"`{name}` must be one run of ones in every row, but row {row} has a hole."
            )
    return mask


class QRNNEncoder(nn.Module):
    """The encoder's stack over embeddings (B, S, E)."""

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__()
        self.reverse = config.reverse_source
        self.dropout = nn.Dropout(_embedding_dropout(config))
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
                    layers, _connection(config, width), _feed_forward(config), dense=dense
                )
            )
            width = config.hidden_size + (width if dense else 0)
        self.norm = _final_norm(config)

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
        hidden_states = collected[-1] = self.norm(hidden_states)
        return QRNNEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(collected) if output_hidden_states else None,
            final_states=torch.stack(finals, dim=1),  # (B, L, H)
        )


class QRNNDecoder(nn.Module):
    """The decoder's stack over embeddings (B, T, E); with `reads_source`, Eqs. 7 and 8 too."""

    def __init__(self, config: QRNNConfig, *, reads_source: bool) -> None:
        super().__init__()
        self.reads_source = reads_source
        self.dropout = nn.Dropout(_embedding_dropout(config))
        self.layers = nn.ModuleList()
        width, hidden = config.embedding_size, config.hidden_size
        kernel_sizes = config.kernel_sizes("decoder")
        for index, kernel_size in enumerate(kernel_sizes):
            is_last = index == len(kernel_sizes) - 1
            layer = QRNNLayer(
                width,
                hidden,
                kernel_size,
                pooling=config.pooling,
                zoneout=config.zoneout,
                encoding_size=hidden if reads_source else None,
                pool_backend=config.pool_backend,
            )
            attention = _attention(config, is_last=is_last) if reads_source else None
            dense = config.dense_connections and not is_last
            self.layers.append(
                QRNNDecoderLayer(
                    layer, _connection(config, width), attention, _feed_forward(config), dense=dense
                )
            )
            width = hidden + (width if dense else 0)
        self.norm = _final_norm(config)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: QRNNEncoderOutput | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: QRNNCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        explicit_attention: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode `inputs_embeds` (B, T, E), going on from `past_key_values` and filling it.

        `explicit_attention` is `explicit` of `attend`.
        """
        batch, length = inputs_embeds.shape[:2]
        name = "decoder_attention_mask" if self.reads_source else "attention_mask"
        mask = real_steps(attention_mask, length, batch, name=name)
        source_mask = None
        if encoder_outputs is not None:
            assert encoder_outputs.last_hidden_state is not None
            source_length = encoder_outputs.last_hidden_state.shape[1]
            source_mask = real_steps(encoder_attention_mask, source_length, batch, exact=True)
        hidden_states = hide_pads(self.dropout(inputs_embeds), mask)
        collected, attentions = [hidden_states], []
        for index, layer in enumerate(self.layers):
            cache = None if past_key_values is None else past_key_values.layer(index)
            memory = self._memory(index, encoder_outputs, cache)
            state = None if cache is None else cache.current_state()
            if state is not None:
                check_rows("past_key_values", state.c, batch)
            records = cache is not None and cache.record_past
            wants = (output_attentions, records, explicit_attention)
            output = DecoderLayerOutput(
                *layer(hidden_states, mask, source_mask, state, *wants, *memory)
            )
            hidden_states = output.hidden_states
            if cache is not None:
                assert output.state is not None, "the layers of a decoder are causal"
                cache.store(output.state, length, output.past)
            collected.append(hidden_states)
            if output.weights is not None:
                attentions.append(output.weights)
        hidden_states = collected[-1] = self.norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            hidden_states=tuple(collected) if output_hidden_states else None,
            cross_attentions=tuple(attentions) if output_attentions else None,
        )

    def _memory(
        self,
        index: int,
        encoder_outputs: QRNNEncoderOutput | None,
        cache: QRNNCacheLayer | None,
    ) -> Memory:
        """What layer `index` needs of the source: from the cache, or computed and kept there."""
        if not self.reads_source:
            return Memory()
        if cache is not None and cache.memory is not None:
            return cache.memory
        assert encoder_outputs is not None, "a decoder that reads the source needs one"
        finals, states = encoder_outputs.final_states, encoder_outputs.last_hidden_state
        assert finals is not None
        h_tilde = finals[:, index + finals.shape[1] - len(self.layers)]
        memory: Memory = self.layers[index].remember(states, h_tilde)  # type: ignore[operator]
        return memory if cache is None else cache.remember(memory)


def _embedding_dropout(config: QRNNConfig) -> float:
    given = config.embedding_dropout
    return float(config.dropout if given is None else given)


def _connection(config: QRNNConfig, input_size: int) -> Connection:
    return Connection(
        input_size,
        config.hidden_size,
        dropout=config.dropout,
        residual=config.residual,
        rms_norm=config.rms_norm,
    )


def _feed_forward(config: QRNNConfig) -> FeedForward | None:
    if config.feed_forward_size == 0:
        return None
    return FeedForward(config.hidden_size, config.feed_forward_size, config.dropout)


def _attention(config: QRNNConfig, *, is_last: bool) -> OutputAttention | AttentionBlock | None:
    heads, scaling = config.num_attention_heads, config.attention_scaling
    if config.attention_layers == "all":
        return AttentionBlock(config.hidden_size, heads, scaling=scaling, dropout=config.dropout)
    return OutputAttention(config.hidden_size, heads, scaling=scaling) if is_last else None


def _final_norm(config: QRNNConfig) -> nn.Module:
    return nn.RMSNorm(config.hidden_size, eps=RMS_NORM_EPS) if config.rms_norm else nn.Identity()
