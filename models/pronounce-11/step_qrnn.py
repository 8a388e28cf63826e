"""One step of the decoder, T = 1, by few calls of torch: what generate() does for every token.

    z, f, o = W [x_{t-K+1} ... x_t] + V h~      Eqs. 1 and 7 of arXiv 1611.01576
    c_t = sigma(f) . c_{t-1} + (1 - sigma(f)) . tanh(z)              Eqs. 3 to 5
    h_t = sigma(o) . (W_k k_t + W_c c_t)                                   Eq. 8

A step of one row is soon computed. What every module asks around its product (is a gradient wanted,
does anybody listen, who looks at the operations?) takes longer. Here all of it is asked first, and
then the products are made, the same as in the modules. Where one is not plain (an adapter took its
place, it is quantised, hooked, compiled, traced, in training), `may_step` says no, and the modules
are called.

Shapes: R rows, B sources, S source length, E input channels, H units, K filter width, G gates,
N attention heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .attention_qrnn import (
    AttentionBlock,
    OutputAttention,
    context_of,
    pad_bias,
    split_heads,
)
from .blocks_qrnn import Connection, FeedForward
from .cache_qrnn import QRNNCache, QRNNCacheLayer
from .checks_qrnn import check_token_ids
from .connect_qrnn import is_plain_dropout, plain_norm
from .decoder_qrnn import QRNNDecoder, QRNNDecoderLayer
from .internals_qrnn import is_untouched, runs_eagerly
from .layers_qrnn import LayerPast, LayerState, QRNNLayer
from .pool_kinds_qrnn import POOL_KINDS
from .pooling_qrnn import pool_eagerly
from .products_qrnn import linear

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def step(
    base: Any, token_ids: torch.Tensor, cache: QRNNCache, source_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Go one token on from `cache`, and change it.

    Args:
        base: A model without its head, with `shared` and `decoder`; `may_step` said yes.
        token_ids: (R, 1), none of them a pad.
        cache: The state to go on from.
        source_mask: (B, S) or (R, S), true where the source is real; None where it is everywhere.

    Returns:
        The decoder's output (R, 1, H).
    """
    try:
        x = nn.functional.embedding(token_ids, base.shared.weight)  # (R, 1, E)
    except IndexError:
        # Looked for only now which one is wrong.
        name = "decoder_input_ids" if base.config.is_encoder_decoder else "input_ids"
        check_token_ids(name, token_ids, base.config.vocab_size)
        raise
    bias = None if source_mask is None else pad_bias(source_mask, x.dtype)
    for index, layer in enumerate(base.decoder.layers):
        x = _layer_step(layer, cache.layer(index), x, bias)
    return _normed(base.decoder.norm, x)


def _layer_step(
    layer: Any, kept: QRNNCacheLayer, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Map the layer's input (R, 1, E) to (R, 1, H or E + H)."""
    qrnn, attention = layer.layer, layer.attention
    assert kept.inputs is not None, "asked above"
    window = torch.cat([kept.inputs, _normed(layer.connection.norm, x)], dim=1)  # (R, K, E)
    gates = _product(qrnn.convolution, window.flatten(1)[:, None])  # (R, 1, G*H)
    h, _, c, _ = pool_eagerly(gates, kept.gate_bias, kept.c, qrnn.pooling, qrnn.pool_backend)
    assert kept.c is not None, "asked above"
    past = LayerPast(window, None, kept.c, c[:, None]) if kept.record_past else None
    # A view, which keeps one input more than it needs.
    kept.advance(LayerState(window[:, 1:], c), past)
    if layer.attends_inside:
        cell = c[:, None].to(x.dtype)  # (R, 1, H); of halves the state is float32
        h = _product(attention.context, _attend(attention, cell, kept, bias))
        h = h + _product(attention.cell, cell)
        if POOL_KINDS[qrnn.pooling].has_output_gate:
            h = _output_gate(gates, kept.gate_bias, qrnn.hidden_size) * h
    out = x + h if layer.connection.residual else h
    if attention is not None and not layer.attends_inside:
        query = _product(attention.query, _normed(attention.norm, out))
        out = out + _product(attention.out, _attend(attention, query, kept, bias))
    if layer.feed_forward is not None:
        out = out + _feed_forward(layer.feed_forward, out)
    return torch.cat([x, out], dim=-1) if layer.dense else out


def _product(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)


def _normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return plain_norm(norm, x) if isinstance(norm, nn.RMSNorm) else x


def _output_gate(
    gates: torch.Tensor, gate_bias: torch.Tensor | None, hidden_size: int
) -> torch.Tensor:
    o = gates[..., 2 * hidden_size : 3 * hidden_size]
    if gate_bias is not None:
        o = o + gate_bias[:, None, 2 * hidden_size : 3 * hidden_size]
    return o.sigmoid()


def _attend(
    attention: Any, query: torch.Tensor, kept: QRNNCacheLayer, bias: torch.Tensor | None
) -> torch.Tensor:
    """Attend to the source by `query` (R, 1, H): context (R, 1, H)."""
    keys, values = kept.source_keys, kept.source_values
    assert keys is not None, "no source to attend to"
    assert values is not None
    heads = split_heads(query, attention.num_heads)
    return context_of(heads, keys, values, bias, attention.scale)


def _feed_forward(block: Any, x: torch.Tensor) -> torch.Tensor:
    gate, inner = _product(block.gate_and_in, _normed(block.norm, x)).chunk(2, dim=-1)
    return _product(block.out, nn.functional.silu(gate) * inner)


# ------------------------------------------------------------------ may it be done so


def may_step(base: Any, kind: type[nn.Module], token_ids: torch.Tensor | None, cache: Any) -> bool:
    """Tell whether a call is an ordinary step of generate() on a CPU, by modules of ours.

    Args:
        base: A model without its head.
        kind: Its class, if nobody has changed it.
        token_ids: Its input (R, 1).
        cache: Its `past_key_values`.
    """
    return (
        type(cache) is QRNNCache
        and token_ids is not None
        and not torch.is_grad_enabled()
        # Before all that looks at sizes, which are no numbers to a compiler.
        and runs_eagerly(token_ids)
        and token_ids.device.type == "cpu"
        and token_ids.dim() == 2
        and token_ids.shape[1] == 1
        and not token_ids.is_floating_point()
        and not torch.is_autocast_enabled("cpu")
        and is_untouched(base, kind)
        and _is_plain_embedding(base.shared)
        and is_untouched(base.decoder, QRNNDecoder)
        and _is_idle(base.decoder.dropout)
        and len(base.decoder.layers) == len(cache.layers)
        and all(
            _is_plain_layer(layer)
            and _goes_on(cache.layer(index), token_ids.shape[0], base.shared.weight)
            and cache.layer(index).has_memory == base.decoder.reads_source
            for index, layer in enumerate(base.decoder.layers)
        )
        and _is_plain_norm(base.decoder.norm)
    )


def _is_plain_embedding(embedding: nn.Module) -> bool:
    return (
        is_untouched(embedding, nn.Embedding)
        and embedding.max_norm is None
        and embedding.weight.dtype in _DTYPES
    )


def _goes_on(kept: QRNNCacheLayer, num_rows: int, like: torch.Tensor) -> bool:
    """Tell whether a layer of a cache holds a state of as many rows."""
    tensors = (kept.inputs, kept.gate_bias, kept.source_keys)
    return (
        type(kept) is QRNNCacheLayer
        and kept.num_rows == num_rows
        and kept.c is not None
        and kept.c.dtype == torch.promote_types(like.dtype, torch.float32)
        and kept.c.device == like.device
        and all(x is None or (x.dtype == like.dtype and x.device == like.device) for x in tensors)
        and (kept.source_keys is None or num_rows % kept.source_keys.shape[0] == 0)
    )


def _is_idle(dropout: Any) -> bool:
    return is_plain_dropout(dropout) and not (dropout.training and dropout.p > 0.0)


def _is_plain_norm(norm: nn.Module) -> bool:
    if type(norm) is nn.Identity:
        return is_untouched(norm, nn.Identity)
    return is_untouched(norm, nn.RMSNorm) and norm.weight is not None and norm.eps is not None


def _is_plain_layer(layer: Any) -> bool:
    """Tell whether a layer of the decoder and everything in it is ours, and nobody listens."""
    if not is_untouched(layer, QRNNDecoderLayer):
        return False
    qrnn, connection = layer.layer, layer.connection
    return (
        is_untouched(qrnn, QRNNLayer)
        and not (qrnn.training and qrnn.zoneout > 0.0)
        and is_untouched(qrnn.convolution, nn.Linear)
        and is_untouched(connection, Connection)
        and _is_plain_norm(connection.norm)
        and _is_idle(connection.dropout)
        and _is_plain_attention(layer.attention)
        and _is_plain_feed_forward(layer.feed_forward)
    )


def _is_plain_attention(attention: Any) -> bool:
    if attention is None:
        return True
    if type(attention) is OutputAttention:
        return (
            is_untouched(attention, OutputAttention)
            and is_untouched(attention.context, nn.Linear)
            and is_untouched(attention.cell, nn.Linear)
        )
    return (
        is_untouched(attention, AttentionBlock)
        and _is_plain_norm(attention.norm)
        and is_untouched(attention.query, nn.Linear)
        and is_untouched(attention.out, nn.Linear)
        and _is_idle(attention.dropout)
    )


def _is_plain_feed_forward(block: Any) -> bool:
    return block is None or (
        is_untouched(block, FeedForward)
        and _is_plain_norm(block.norm)
        and is_untouched(block.gate_and_in, nn.Linear)
        and is_untouched(block.out, nn.Linear)
        and _is_idle(block.dropout)
    )
