"""One step of the decoder, T = 1, by few calls of torch: what generate() does for every token.

    z, f, o = W [x_{t-K+1} ... x_t] + V h~      Eqs. 1 and 7 of arXiv 1611.01576
    c_t = sigma(f) . c_{t-1} + (1 - sigma(f)) . tanh(z)              Eqs. 3 to 5
    h_t = sigma(o) . (W_k k_t + W_c c_t)                                   Eq. 8

A step of one row is soon computed. What every module asks around its product (is a gradient wanted,
does anybody listen, who looks at the operations?) takes longer. `plan_step` asks all of it first;
where a module is not plain (an adapter took its place, it is quantised, hooked, compiled, traced,
in training), it says no, and the modules are called. Else the native library makes the step of all
layers in one operation (kernels/csrc/step_stack.h), or torch does here, where there is no library.

Shapes: R rows, B sources, S source length, E input channels, H units, K filter width, G gates,
N attention heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .attention_qrnn import context_of, pad_bias, split_heads
from .cache_qrnn import QRNNCache, QRNNCacheLayer
from .checks_qrnn import check_token_ids
from .connect_qrnn import plain_norm
from .layers_qrnn import LayerPast, LayerState
from .pool_kinds_qrnn import POOL_KINDS
from .pooling_qrnn import pool_eagerly
from .products_qrnn import LEAST_ROWS, linear, prefers_onednn
from .step_plan_qrnn import StepPlan


def step(
    plan: StepPlan,
    token_ids: torch.Tensor,
    cache: QRNNCache,
    source_mask: torch.Tensor | None = None,
    name: str = "input_ids",
) -> torch.Tensor:
    """Go one token on from `cache`, and change it.

    Args:
        plan: What `plan_step` said of this very call.
        token_ids: (R, 1), none of them a pad.
        cache: The state to go on from.
        source_mask: (B, S) or (R, S), true where the source is real; None where it is everywhere.
        name: What the caller calls `token_ids`.

    Returns:
        The decoder's output (R, 1, H).

    Raises:
        ValueError: If an id is not in the vocabulary.
    """
    table = plan.embedding.weight
    try:
        x = torch.embedding(table, token_ids)  # (R, 1, E)
    except (IndexError, RuntimeError):
        # Looked for only now which one is wrong.
        check_token_ids(name, token_ids, table.shape[0])
        raise
    if plan.operation is not None:
        return _native_step(plan, x, cache, source_mask)
    bias = None if source_mask is None else pad_bias(source_mask, x.dtype)
    for index, layer in enumerate(plan.layers):
        x = _layer_step(layer, cache.layer(index), x, bias)
    return _normed(plan.norm, x)


def _native_step(
    plan: StepPlan, x: torch.Tensor, cache: QRNNCache, source_mask: torch.Tensor | None
) -> torch.Tensor:
    """Make the step of all layers by one operation of the native library."""
    assert plan.operation is not None, "asked above"
    layers: Any = cache.layers
    states: list[torch.Tensor] = []
    memory: list[torch.Tensor] = []
    for kept in layers:
        states += (kept.inputs, kept.c)
        memory += [
            m for m in (kept.gate_bias, kept.source_keys, kept.source_values) if m is not None
        ]
    # As products_qrnn.linear chooses.
    onednn = (
        x.shape[0] >= LEAST_ROWS
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and prefers_onednn()
    )
    out, *news = plan.operation(
        x, plan.weights, states, memory, source_mask, plan.layout, plan.numbers, onednn
    )
    for kept, window, c in zip(layers, news[::2], news[1::2], strict=True):
        _advance(kept, window, c)
    return out


def _advance(kept: Any, window: torch.Tensor, c: torch.Tensor) -> None:
    """Let a cache's layer go on by a step of the inputs `window` (R, K, E), to `c` (R, H)."""
    past = LayerPast(window, None, kept.c, c[:, None]) if kept.record_past else None
    # A view, which keeps one input more than it needs.
    kept.advance(LayerState(window[:, 1:], c), past)


def _layer_step(
    layer: Any, kept: QRNNCacheLayer, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Map the layer's input (R, 1, E) to (R, 1, H or E + H)."""
    qrnn, attention = layer.layer, layer.attention
    assert kept.inputs is not None, "asked above"
    window = torch.cat([kept.inputs, _normed(layer.connection.norm, x)], dim=1)  # (R, K, E)
    gates = _product(qrnn.convolution, window.flatten(1)[:, None])  # (R, 1, G*H)
    h, _, c, _ = pool_eagerly(gates, kept.gate_bias, kept.c, qrnn.pooling, qrnn.pool_backend)
    _advance(kept, window, c)
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
