"""The equations of arXiv 1611.01576 in NumPy: activations, pooling, norms and blocks.

Shapes: R rows of any kind, H units, G gates. Gate order is always z, f, o, i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .int8 import times
from .network import FeedForward
from .weights import Array

RMS_NORM_EPS = np.float32(1e-6)


class Gates(NamedTuple):
    """The activated gates (R, H): what is written (i . z, or (1 - f) . z), f, and o or None."""

    write: Array
    f: Array
    o: Array | None


def activate(gates: Array, pooling: str, hidden_size: int) -> Gates:
    """Activate pre-activations (R, G*H)."""
    z, f, *others = (
        gates[:, at : at + hidden_size] for at in range(0, gates.shape[1], hidden_size)
    )
    candidate = np.tanh(z)
    if pooling == "ifo":
        o, i = others
        return Gates(sigmoid(i) * candidate, sigmoid(f), sigmoid(o))
    # sigma(-x), not 1 - sigma(x), whose digits are few where it is small.
    write = sigmoid(-f) * candidate
    return Gates(write, sigmoid(f), sigmoid(others[0]) if others else None)


def sigmoid(x: Array) -> Array:
    """Compute sigma(x) in every digit."""
    # The exponential of a negative number cannot overflow.
    e = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, np.float32(1), e) / (np.float32(1) + e)
    return result


def rms_norm(x: Array, weight: Array) -> Array:
    """Normalise rows (R, H)."""
    square = np.mean(np.square(x), axis=-1, keepdims=True)
    result: Array = x / np.sqrt(square + RMS_NORM_EPS) * weight
    return result


def feed_forward(x: Array, block: FeedForward) -> Array:
    """Add the gated block's output to its input (R, H)."""
    both = times(rms_norm(x, block.norm), block.gate_and_in)
    inner = both.shape[1] // 2
    gate = both[:, :inner]
    result: Array = x + times(gate * sigmoid(gate) * both[:, inner:], block.out)
    return result


def softmax(scores: Array) -> Array:
    """Compute the softmax over the last dimension."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def log_softmax(scores: Array) -> Array:
    """Compute the logarithm of the softmax over the last dimension."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
