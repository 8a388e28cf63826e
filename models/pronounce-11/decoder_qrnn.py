"""The decoder: gates that read the encoder's final states, and attention (Eqs. 7 and 8).

Shapes: B batch, S source length, T target length, E embedding, H units, L layers, N heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .attention_qrnn import AttentionBlock, Memory, OutputAttention
from .blocks_qrnn import (
    Connection,
    FeedForward,
    embedding_dropout,
    make_connection,
    make_feed_forward,
    make_final_norm,
)
from .cache_qrnn import QRNNCache, QRNNCacheLayer
from .checks_qrnn import check_rows
from .configuration_qrnn import QRNNConfig
from .connect_qrnn import normalize
from .encoder_qrnn import QRNNEncoderOutput
from .internals_qrnn import is_untouched, runs_eagerly
from .layers_qrnn import LayerPast, LayerState, QRNNLayer
from .padding_qrnn import hide_pads, real_steps
from .products_qrnn import apply_linear


class DecoderLayerOutput(NamedTuple):
    """`hidden_states` (B, T, H or E + H), attention weights (B, N, T, S) or None, the state.

    `past` as in `LayerOutput`.
    """

    hidden_states: torch.Tensor
    weights: torch.Tensor | None
    state: LayerState | None
    past: LayerPast | None


class QRNNDecoderLayer(GradientCheckpointingLayer):
    """One decoder layer (Eq. 7), with the attention of Eq. 8, a block of attention, or neither.

    Args:
        layer: A causal QRNNLayer.
        connection: Norm, dropout and residual around it.
        attention: OutputAttention or AttentionBlock, or None.
        feed_forward: Block behind all that, or None.
        dense: Concatenate the input to the output.
    """

    def __init__(
        self,
        layer: QRNNLayer,
        connection: Connection,
        attention: OutputAttention | AttentionBlock | None,
        feed_forward: FeedForward | None,
        *,
        dense: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.connection = connection
        self.attention = attention
        # Here, since a wrapper that takes its place later is of another class.
        self.attends_inside = isinstance(attention, OutputAttention)
        self.feed_forward = feed_forward
        self.dense = dense

    def remember(self, encoder_states: torch.Tensor, h_tilde: torch.Tensor) -> Memory:
        """Compute `V h~`, keys and values from encoder states (B, S, H) and h~ (B, H)."""
        # V h~ is the same at every step: it is multiplied once a source, not once a step.
        gate_bias = (
            None if self.layer.encoding is None else apply_linear(self.layer.encoding, h_tilde)
        )
        if self.attention is None:
            return Memory(gate_bias)
        return Memory(gate_bias, *self.attention.keys_values(encoder_states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        source_mask: torch.Tensor | None,
        state: LayerState | None,
        want_weights: bool,
        want_past: bool,
        explicit: bool,
        *remembered: torch.Tensor | None,
    ) -> DecoderLayerOutput:
        """Run over `hidden_states` (B, T, E), from `state`; masks are (B, T) and (B, S) or None.

        `want_weights` and `explicit` as in `attend`.
        `remembered` is a Memory, one tensor an argument: reentrant checkpointing looks into no
        tuple, neither here nor in what is returned (a plain tuple arrives).
        """
        memory = Memory(*remembered)
        # Its two kinds are called differently; `attends_inside` tells them apart.
        attention: Any = self.attention
        h, c, o, new_state, _, past = self.layer(
            self.connection.before(hidden_states),
            mask,
            state=state,
            gate_bias=memory.gate_bias,
            # Eq. 8 needs c and o apart: h = o . (W_k k + W_c c).
            want_c=self.attends_inside,
            want_o=self.attends_inside,
            want_past=want_past,
        )
        weights = None
        if self.attends_inside:
            assert c is not None, "attention reads c"
            h, weights = attention(c, o, memory, source_mask, want_weights, explicit)
            # A pad attends too, and the next convolution would read what it found.
            h = hide_pads(h, mask)
        # A wrapper or a hook around the block gets what the block gets: its input, not yet normed.
        norm = None
        if attention is not None and runs_eagerly(hidden_states):
            norm = attention.norm if is_untouched(attention, AttentionBlock) else None
        out, normed = self.connection.after(hidden_states, h, norm)  # (B, T, H)
        if attention is not None and not self.attends_inside:
            more = {} if norm is None else {"normed": normed}
            out, weights = attention(out, memory, source_mask, want_weights, explicit, **more)
            out = hide_pads(out, mask)
        if self.feed_forward is not None:
            out = self.feed_forward(out)
        # Section 2.2: every later layer reads this one's input too, so that widths add up.
        if self.dense:
            out = torch.cat([hidden_states, out], dim=-1)  # (B, T, E + H)
        return DecoderLayerOutput(out, weights, new_state, past)


class QRNNDecoder(nn.Module):
    """The decoder's stack over embeddings (B, T, E); with `reads_source`, Eqs. 7 and 8 too."""

    def __init__(self, config: QRNNConfig, *, reads_source: bool) -> None:
        super().__init__()
        self.reads_source = reads_source
        self.dropout = embedding_dropout(config)
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
            # Nothing behind the last layer reads it, and attention and head expect H.
            dense = config.dense_connections and not is_last
            self.layers.append(
                QRNNDecoderLayer(
                    layer,
                    make_connection(config, width),
                    attention,
                    make_feed_forward(config),
                    dense=dense,
                )
            )
            width = hidden + (width if dense else 0)
        self.norm = make_final_norm(config)

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
        # The mask's name in errors is the one the user gave it.
        name = "decoder_attention_mask" if self.reads_source else "attention_mask"
        mask = real_steps(attention_mask, length, batch, name=name)
        source_mask = None
        if encoder_outputs is not None:
            assert encoder_outputs.last_hidden_state is not None
            source_mask = mask_of_source(encoder_attention_mask, encoder_outputs, batch)
        hidden_states = hide_pads(self.dropout(inputs_embeds), mask)
        collected, attentions = [hidden_states], []
        for index, layer in enumerate(self.layers):
            cache = None if past_key_values is None else past_key_values.layer(index)
            memory = self._memory(index, encoder_outputs, cache)
            state = None if cache is None else cache.current_state()
            # Torch would broadcast a state of one row over the batch without a word.
            if state is not None:
                check_rows("past_key_values", state.c, batch)
            records = cache is not None and cache.record_past
            wants = (output_attentions, records, explicit_attention)
            # A checkpointed layer gives a plain tuple back.
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
        # As in all of transformers, the last of the collected states is the normed one.
        hidden_states = normalize(self.norm, hidden_states, for_products=False)
        collected[-1] = hidden_states
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
        """Return layer `index`'s memory of the source: the cache's, or computed and kept there."""
        if not self.reads_source:
            return Memory()
        if cache is not None and cache.memory is not None:
            return cache.memory
        assert encoder_outputs is not None, "a decoder that reads the source needs one"
        finals, states = encoder_outputs.final_states, encoder_outputs.last_hidden_state
        assert finals is not None
        # A decoder with fewer layers reads the encoder's last ones.
        h_tilde = finals[:, index + finals.shape[1] - len(self.layers)]
        memory: Memory = self.layers[index].remember(states, h_tilde)  # type: ignore[operator]
        each = getattr(encoder_outputs, "rows_each", 1)
        if each > 1 and memory.gate_bias is not None:
            # Small, and added to the gates of every row; keys and values stay one a source.
            memory = memory._replace(gate_bias=memory.gate_bias.repeat_interleave(each, dim=0))
        return memory if cache is None else cache.remember(memory)


def mask_of_source(
    attention_mask: torch.Tensor | None, encoded: QRNNEncoderOutput, batch: int
) -> torch.Tensor | None:
    """Return where the sources of `batch` rows are real, (B, S) or, as it is given, (R, S)."""
    if attention_mask is None:
        return None
    assert encoded.last_hidden_state is not None
    sources, length = encoded.last_hidden_state.shape[:2]
    shared = getattr(encoded, "rows_each", 1) > 1 and attention_mask.shape[:1] == (sources,)
    # Exact: a mask of another length would silently attend to the wrong tokens.
    return real_steps(attention_mask, length, sources if shared else batch, exact=True)


def _attention(config: QRNNConfig, *, is_last: bool) -> OutputAttention | AttentionBlock | None:
    heads, scaling = config.num_attention_heads, config.attention_scaling
    if config.attention_layers == "all":
        return AttentionBlock(
            config.hidden_size,
            heads,
            scaling=scaling,
            dropout=config.dropout,
            locked=config.locked_dropout,
        )
    return OutputAttention(config.hidden_size, heads, scaling=scaling) if is_last else None
