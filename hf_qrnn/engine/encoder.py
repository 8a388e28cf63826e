"""The encoder in NumPy, over sources of any lengths without a pad.

All sources lie one behind the other, the longest first, so that the first rows of a step are those
that have one.

Shapes: B sources, S length of one, N = sum of the lengths, E channels, H units, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .equations import activate, feed_forward, rms_norm
from .int8 import times
from .network import Layer, Network
from .settings import NUM_GATES
from .weights import Array


class Encoded(NamedTuple):
    """For each of B sources its `states` (S, H); `finals` (B, L, H), h~ of every layer (Eq. 7)."""

    states: list[Array]
    finals: Array


class _Packing(NamedTuple):
    """Places of the sources' first steps, and their lengths (B,)."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def encode(network: Network, sources: Sequence[Sequence[int]]) -> Encoded:
    """Encode sources of token ids, none of them empty."""
    lengths = np.array([len(source) for source in sources])
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    packing = _Packing(np.cumsum(lengths) - lengths, lengths)
    ids = np.concatenate([np.asarray(sources[index], np.int64) for index in order])
    x = network.embedding[ids]  # (N, E)
    finals = []
    for layer in network.encoder:
        x, final = _run(network, layer, x, packing)
        finals.append(final)
    if network.encoder_norm is not None:
        x = rms_norm(x, network.encoder_norm)
    back = np.argsort(order)
    starts, ends = packing.starts[back], (packing.starts + lengths)[back]
    states = [x[start:end] for start, end in zip(starts, ends, strict=True)]
    return Encoded(states, np.stack(finals, axis=1)[back])


def _run(network: Network, layer: Layer, x: Array, packing: _Packing) -> tuple[Array, Array]:
    """Map (N, E) to the output (N, H or E + H) and h~ (B, H)."""
    normed = x if layer.norm is None else rms_norm(x, layer.norm)
    outputs, finals = [], []
    for convolution, reverse in zip(layer.directions, layer.reverses, strict=True):
        causal = network.settings.encoder_causal
        windows = _windows(normed, packing, layer.kernel_size, causal=causal, reverse=reverse)
        gates = times(windows, convolution.weight) + convolution.bias
        h = _pool(gates, network.settings.pooling, packing, reverse=reverse)
        outputs.append(h)
        last = packing.starts if reverse else packing.starts + packing.lengths - 1
        finals.append(h[last])
    out = np.concatenate(outputs, axis=1)
    if layer.adds_input:
        out = x + out
    if layer.feed_forward is not None:
        out = feed_forward(out, layer.feed_forward)
    if layer.keeps_input:
        out = np.concatenate([x, out], axis=1)
    return out, np.concatenate(finals, axis=1)


def _windows(
    x: Array, packing: _Packing, kernel_size: int, *, causal: bool, reverse: bool
) -> Array:
    """Return the K inputs that each step sees (N, K*E), in processing order."""
    if kernel_size == 1:
        return x
    before = kernel_size - 1
    left = before if causal else before // 2
    right = before - left
    if reverse:
        left, right = right, left
    num = len(packing.starts)
    # Zeros before and behind every source.
    padded = np.zeros((len(x) + num * before, x.shape[1]), np.float32)
    rows = np.repeat(np.arange(num), packing.lengths)
    places = np.arange(len(x)) + rows * before  # of each step's first tap
    padded[places + left] = x
    taps = range(kernel_size)
    return np.concatenate([padded[places + tap] for tap in (taps[::-1] if reverse else taps)], 1)


def _pool(gates: Array, pooling: str, packing: _Packing, *, reverse: bool) -> Array:
    """Run the recurrence of Eqs. 3 to 5 over gates (N, G*H): h (N, H)."""
    hidden = gates.shape[1] // NUM_GATES[pooling]
    write, f, o = activate(gates, pooling, hidden)
    states = np.empty_like(write)
    c = np.zeros((len(packing.starts), hidden), np.float32)
    # Sorted by length: those with a step t are the first.
    counts = np.searchsorted(-packing.lengths, -np.arange(packing.lengths[0]), side="left")
    for step, count in enumerate(counts):
        at = packing.starts[:count]
        at = at + packing.lengths[:count] - 1 - step if reverse else at + step
        c = f[at] * c[:count] + write[at]
        states[at] = c
    return states if o is None else o * states
