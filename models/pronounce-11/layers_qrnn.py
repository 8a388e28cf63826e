"""The quasi-recurrent layer (section 2 of arXiv 1611.01576).

Nothing here knows a config: layers take plain numbers. State is an argument and a result.

Shapes: B batch, T time, S source length, E input channels, H units, K filter width, G gates,
N attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .convolution_qrnn import convolve, gate_convolution
from .padding_qrnn import hide_pads, last_inputs, pad_time
from .pool_kinds_qrnn import NUM_GATES, POOL_KINDS
from .pooling_qrnn import pool

# On a CPU without gradients, windows and gates are made in blocks of this many bytes, in memory
# that is already mapped. Smaller blocks cost more than they save.
BLOCK_BYTES = 32 * 2**20


class LayerState(NamedTuple):
    """The state a causal layer goes on from: its last K-1 `inputs` (B, K-1, E) and `c` (B, H)."""

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
        """Return the state after the first `num_steps` of the T steps."""
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
    """Join tensors, or named tuples of them, of several groups of rows; None stays None."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    return type(first)(*(join_rows(field) for field in zip(*parts, strict=True)))


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
        pool_backend: "auto", "native", "triton" or "torch".
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
            state: Start of a causal layer, in processing order; zero without one.
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
        """Return the number of rows of `x` that go through the layer together."""
        batch, length, width = x.shape
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return batch
        draws = self.training and self.zoneout > 0.0
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if traced or draws:
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
        """Run `forward` over rows that go together."""
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
        if want_o and POOL_KINDS[self.pooling].has_output_gate:
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
