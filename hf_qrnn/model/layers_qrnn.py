"""The quasi-recurrent layer and what stands around it (section 2 of arXiv 1611.01576).

Nothing here knows a config: layers take plain numbers. State is an argument and a result.

Shapes: B batch, T time, S source length, E input channels, H units, K filter width, G gates,
N attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_qrnn import RMS_NORM_EPS, AttentionBlock, Memory, OutputAttention
from .convolution_qrnn import convolve, gate_convolution, pad_time
from .pooling_qrnn import NUM_GATES, pool

# On a CPU without gradients, windows and gates of so many bytes are made at a time, in memory that
# is already mapped. Smaller blocks cost more than they save.
BLOCK_BYTES = 32 * 2**20


class LayerState(NamedTuple):
    """What a causal layer needs to go on: its last K-1 `inputs` (B, K-1, E) and `c` (B, H)."""

    inputs: torch.Tensor
    c: torch.Tensor


class LayerPast(NamedTuple):
    """A call of a causal layer in full, from which the state after any of its T steps follows.

    `inputs` (B, K-1 + T, E), the K-1 before the call first; `mask` (B, T) or None; `c0` (B, H)
    before the call and `c` (B, T, H) after each step.
    """

    inputs: torch.Tensor
    mask: torch.Tensor | None
    c0: torch.Tensor
    c: torch.Tensor

    def state_after(self, num_steps: int) -> LayerState:
        """The state after the first `num_steps` of the T steps."""
        before = self.inputs.shape[1] - self.c.shape[1]
        mask = None if self.mask is None else self.mask[:, :num_steps]
        inputs = last_inputs(self.inputs[:, : before + num_steps], mask, before)
        return LayerState(inputs, self.c[:, num_steps - 1] if num_steps else self.c0)


class LayerOutput(NamedTuple):
    """`h` (B, T, H); `c` and `o` (B, T, H) where asked; the state of a layer that can go on.

    `final` is c (B, H) after the last processed step, in at least float32.
    `past` holds all states on the way, where asked.
    """

    h: torch.Tensor
    c: torch.Tensor | None
    o: torch.Tensor | None
    state: LayerState | None
    final: torch.Tensor
    past: LayerPast | None = None


def join_rows(parts: Sequence[Any]) -> Any:
    """Tensors, or named tuples of them, of several groups of rows as one; None stays None."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    return type(first)(*(join_rows(field) for field in zip(*parts, strict=True)))


def hide_pads(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero `x` (B, T, E) where `mask` (B, T) is false."""
    return x if mask is None else x.masked_fill(~mask[:, :, None], 0.0)


def last_inputs(padded: torch.Tensor, mask: torch.Tensor | None, num: int) -> torch.Tensor:
    """The last `num` real rows of `padded` (B, num + T, E), whose first `num` rows came before.

    A right-padded row ends at its last real step, so that it goes on as if it had no pads.
    """
    length = padded.shape[1] - num
    if mask is None or length == 0 or num == 0:
        return padded[:, length:]
    times = torch.arange(1, length + 1, device=mask.device)
    end = (mask * times).amax(dim=1)  # (B,): 1 + index of the last real step, 0 without one
    rows = end[:, None] + torch.arange(num, device=mask.device)  # (B, num)
    return padded.gather(1, rows[:, :, None].expand(-1, -1, padded.shape[2]))


def last_step(h: torch.Tensor, mask: torch.Tensor | None, *, reverse: bool = False) -> torch.Tensor:
    """`h` (B, T, H) at the last real step in processing order, (B, H); zeros without one."""
    if h.shape[1] == 0:
        return h.new_zeros(h.shape[0], h.shape[2])
    if mask is None:
        return h[:, 0] if reverse else h[:, -1]
    length = mask.shape[1]
    times = torch.arange(length, device=mask.device)
    # At a row without a real step any index does: h is zero there.
    index = ((mask * (length - times)) if reverse else (mask * (times + 1))).argmax(dim=1)
    return h.gather(1, index[:, None, None].expand(-1, 1, h.shape[2]))[:, 0]


class QRNNLayer(nn.Module):
    """One direction of one layer: a convolution for all gates, then pooling (Eqs. 1, 3 to 5).

        Z = tanh(W_z * X)   F = sigma(W_f * X)   O = sigma(W_o * X)   [I = sigma(W_i * X)]

    In a decoder (`encoding_size` given) each gate also reads the encoder's final state h~ through
    a matrix of its own (Eq. 7): Z = tanh(W_z * X + V_z h~), and so on.

    Args:
        input_size: E.
        hidden_size: H.
        kernel_size: K, the filter width.
        pooling: "f", "fo" or "ifo".
        zoneout: Probability of Eq. 6, in training only.
        causal: Whether step t sees only t-K+1..t; otherwise (K-1)//2 steps before it and K//2
            after it. Paper: says unmasked, not how even widths are centred. Here: one more ahead.
        reverse: Process from the last timestep to the first.
        encoding_size: Width of h~; None without Eq. 7.
        pool_backend: "auto", "compiled", "triton" or "torch".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int = 2,
        *,
        pooling: str = "fo",
        zoneout: float = 0.0,
        causal: bool = True,
        reverse: bool = False,
        encoding_size: int | None = None,
        pool_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.hidden_size, self.kernel_size = hidden_size, kernel_size
        self.pooling, self.zoneout, self.causal, self.reverse = pooling, zoneout, causal, reverse
        self.pool_backend = pool_backend
        num_gates = NUM_GATES[pooling]
        self.convolution = gate_convolution(input_size, hidden_size, kernel_size, num_gates)
        self.encoding: nn.Linear | None = None
        if encoding_size is not None:
            # V_z, V_f, V_o and V_i, one above the other.
            self.encoding = nn.Linear(encoding_size, num_gates * hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        state: LayerState | None = None,
        gate_bias: torch.Tensor | None = None,
        want_c: bool = False,
        want_o: bool = False,
        want_past: bool = False,
    ) -> LayerOutput:
        """Run the layer over `x` (B, T, E).

        Args:
            x: Inputs (B, T, E).
            mask: (B, T) boolean, true where the step is real.
            state: Where a causal layer goes on from, in processing order; zero without one.
            gate_bias: `self.encoding(h~)` (B, G*H).
            want_c: Return the states of all steps: what attention compares (Eq. 8).
            want_o: Return the output gate too: attention applies it itself (Eq. 8).
            want_past: Return the states on the way too, of a layer that can go on.
        """
        wants = (want_c, want_o, want_past)
        rows = self._rows_at_once(x)
        if rows >= x.shape[0]:
            return self._run(x, mask, state, gate_bias, *wants)
        parts = []
        for start in range(0, x.shape[0], rows):
            some = slice(start, start + rows)
            own_mask = None if mask is None else mask[some]
            own_state = None if state is None else LayerState(*(part[some] for part in state))
            own_bias = None if gate_bias is None else gate_bias[some]
            parts.append(self._run(x[some], own_mask, own_state, own_bias, *wants))
        joined: LayerOutput = join_rows(parts)
        return joined

    def _rows_at_once(self, x: torch.Tensor) -> int:
        """How many rows of `x` go through the layer together."""
        batch, length, width = x.shape
        draws = self.training and self.zoneout > 0.0
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if x.device.type != "cpu" or torch.is_grad_enabled() or traced or draws:
            return batch
        per_step = self.kernel_size * width + NUM_GATES[self.pooling] * self.hidden_size
        return max(1, BLOCK_BYTES // max(1, length * per_step * x.element_size()))

    def _run(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        state: LayerState | None,
        gate_bias: torch.Tensor | None,
        want_c: bool,
        want_o: bool,
        want_past: bool,
    ) -> LayerOutput:
        """`forward` over rows that go together."""
        x = hide_pads(x, mask)
        before = self.kernel_size - 1
        if state is not None:
            before_it = state.inputs.to(x.dtype)
            padded = torch.cat([x, before_it] if self.reverse else [before_it, x], dim=1)
        else:
            left = before if self.causal else before // 2
            right = before - left
            padded = pad_time(x, *((right, left) if self.reverse else (left, right)))
        # gates: (B, T, G*H)
        gates, bias = convolve(self.convolution, padded, self.kernel_size, reverse=self.reverse)
        if bias is not None:
            gate_bias = bias.expand(x.shape[0], -1) if gate_bias is None else gate_bias + bias
        h, c, final = pool(
            gates,
            pooling=self.pooling,
            bias=gate_bias,
            initial_state=None if state is None else state.c,
            mask=mask,
            zoneout=self.zoneout if self.training else 0.0,
            reverse=self.reverse,
            return_c=want_c or want_past,
            backend=self.pool_backend,
        )
        o = None
        if want_o and self.pooling != "f":
            channels = slice(2 * self.hidden_size, 3 * self.hidden_size)
            o = gates[..., channels]
            o = (o if gate_bias is None else o + gate_bias[:, None, channels]).sigmoid()
        new_state, past = None, None
        if self.causal and not self.reverse:
            new_state = LayerState(last_inputs(padded, mask, before), final)
            if want_past:
                assert c is not None, "asked for above"
                c0 = torch.zeros_like(final) if state is None else state.c.to(final.dtype)
                past = LayerPast(padded, mask, c0, c)
        return LayerOutput(h, c, o, new_state, final, past)


class FeedForward(nn.Module):
    """Pre-norm residual gated feed-forward block: x + W_out (silu(W_gate n) . W_in n)."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=RMS_NORM_EPS)
        self.gate_and_in = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.out = nn.Linear(inner_size, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) to (B, T, H)."""
        gate, inner = self.gate_and_in(self.norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.out(nn.functional.silu(gate) * inner))


class Connection(nn.Module):
    """What stands around every layer: norm before, dropout, then residual, dense or nothing.

    Dropout acts once, on the layer's own output. A residual skips a layer whose widths differ.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, dropout: float, residual: bool, rms_norm: bool
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(input_size, eps=RMS_NORM_EPS) if rms_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.residual = residual and input_size == hidden_size

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, E) to (B, T, E)."""
        normed: torch.Tensor = self.norm(x)
        return normed

    def after(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The layer's input (B, T, E) and own output (B, T, H) to (B, T, H)."""
        h = self.dropout(h)
        return x + h if self.residual else h


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
        """(B, S, E) to the output (B, S, H or E + H) and h~ (B, H) of Eq. 7.

        h~ is the pooled output at the last processed real step, before dropout and connections.
        """
        x = self.connection.before(hidden_states)
        outputs, final = [], []
        for layer, reverse in zip(self.directions, self.reversed, strict=True):
            h = layer(x, mask).h
            outputs.append(h)
            final.append(last_step(h, mask, reverse=reverse))
        out = self.connection.after(hidden_states, torch.cat(outputs, dim=-1))  # (B, S, H)
        if self.feed_forward is not None:
            out = self.feed_forward(out)
        if self.dense:
            out = torch.cat([hidden_states, out], dim=-1)  # (B, S, E + H)
        return out, torch.cat(final, dim=-1)


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
        """What this layer needs of encoder states (B, S, H) and h~ (B, H): `V h~`, keys, values."""
        gate_bias = None if self.layer.encoding is None else self.layer.encoding(h_tilde)
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
        attention: Any = self.attention
        h, c, o, new_state, _, past = self.layer(
            self.connection.before(hidden_states),
            mask,
            state=state,
            gate_bias=memory.gate_bias,
            want_c=self.attends_inside,
            want_o=self.attends_inside,
            want_past=want_past,
        )
        weights = None
        if self.attends_inside:
            assert c is not None, "attention reads c"
            h, weights = attention(c, o, memory, source_mask, want_weights, explicit)
            h = hide_pads(h, mask)
        out = self.connection.after(hidden_states, h)  # (B, T, H)
        if attention is not None and not self.attends_inside:
            out, weights = attention(out, memory, source_mask, want_weights, explicit)
            out = hide_pads(out, mask)
        if self.feed_forward is not None:
            out = self.feed_forward(out)
        if self.dense:
            out = torch.cat([hidden_states, out], dim=-1)  # (B, T, E + H)
        return DecoderLayerOutput(out, weights, new_state, past)
